//! Places for connections, and who has to give his up.
//!
//! A port has so many places. Who comes when all are taken gets the place of whoever has kept the
//! server waiting longest: silent since its last request, slow to read an answer, or stuck in a
//! handshake. Holding all places therefore locks nobody out. A connection that has the server work is
//! never given up for another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long a connection may stay without a request, and a request head take.
pub const IDLE: Duration = Duration::from_secs(60);
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How soon another one has to leave when the first has not.
const LEAVING: Duration = Duration::from_millis(100);
/// Progress of a body is noted so often.
const NOTE: Duration = Duration::from_secs(1);
/// How long a refusal for want of room counts.
const PRESSED: Duration = Duration::from_secs(10);
/// What a body or an answer may take, however slowly it moves, while others are refused for want of
/// room.
const GRACE: Duration = Duration::from_secs(5);
/// From then on it must have moved at so many bytes a second: a few hundred peers who trickle would
/// otherwise keep everybody else from being served, for the price of a byte now and then.
const LEAST_RATE: u64 = 16 * 1024;

/// The places of one port.
pub struct Places {
    slots: Arc<Semaphore>,
    waited_for: Mutex<BTreeMap<Rank, Arc<Leave>>>,
    next: AtomicU64,
    refused: Mutex<Option<Instant>>,
}

/// Since when the peer has kept the server waiting, and a number to tell equals apart.
type Rank = (Instant, u64);

impl Places {
    /// `count` of them.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(count)),
            waited_for: Mutex::default(),
            next: AtomicU64::new(0),
            refused: Mutex::default(),
        })
    }

    /// A place, somebody else's if need be.
    pub async fn take(self: &Arc<Self>) -> Place {
        loop {
            self.make_room();
            let permit = tokio::time::timeout(LEAVING, self.slots.clone().acquire_owned());
            if let Ok(Ok(permit)) = permit.await {
                return Place::new(self, permit);
            }
        }
    }

    /// Has the peer leave that was waited for longest, if no place is free.
    fn make_room(&self) {
        if self.slots.available_permits() == 0 && self.shed() {
            tracing::debug!("a connection was closed to make room for another");
        }
    }

    /// Has the peer leave that was waited for longest; whether there is one.
    pub fn shed(&self) -> bool {
        let mut waited_for = lock(&self.waited_for);
        let Some((_, leave)) = waited_for.pop_first() else {
            return false;
        };
        // Under the lock, so that it is not ranked again.
        leave.said.store(true, Ordering::Release);
        leave.word.notify_one();
        true
    }

    fn rank(&self, before: Option<Rank>, after: Option<Rank>, leave: &Arc<Leave>) {
        let mut waited_for = lock(&self.waited_for);
        if let Some(before) = before {
            waited_for.remove(&before);
        }
        if let Some(after) = after.filter(|_| !leave.said.load(Ordering::Acquire)) {
            waited_for.insert(after, leave.clone());
        }
    }

    /// Somebody was refused because requests fill all the room.
    fn refused(&self) {
        *lock(&self.refused) = Some(Instant::now());
    }

    fn is_pressed(&self) -> bool {
        lock(&self.refused).is_some_and(|at| at.elapsed() < PRESSED)
    }
}

/// The word to leave.
#[derive(Default)]
struct Leave {
    word: Notify,
    said: AtomicBool,
}

/// One connection's place, for as long as it is served.
pub struct Place {
    pub life: Arc<Life>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(places: &Arc<Places>, permit: OwnedSemaphorePermit) -> Self {
        let life = Life {
            places: places.clone(),
            id: places.next.fetch_add(1, Ordering::Relaxed),
            leave: Arc::default(),
            activity: Mutex::new(Activity::new()),
        };
        let rank = life.rank(&life.lock());
        places.rank(None, rank, &life.leave);
        Self {
            life: Arc::new(life),
            _permit: permit,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.life.leave.said.store(true, Ordering::Release);
        let activity = self.life.lock();
        let places = &self.life.places;
        places.rank(self.life.rank(&activity), None, &self.life.leave);
    }
}

/// What a connection is doing. HTTP/1 and HTTP/2 have timeouts for heads only: without this, a peer
/// that never speaks, or one that never reads its answers, would keep its place for ever.
pub struct Life {
    places: Arc<Places>,
    id: u64,
    leave: Arc<Leave>,
    activity: Mutex<Activity>,
}

impl Life {
    /// Ends when the place is another's, when nothing was asked for longer than [`IDLE`], when an
    /// answer was not read in `patience`, or when a body or an answer moved too slowly while others
    /// were refused.
    pub async fn outlived(&self, patience: Duration) {
        loop {
            if tokio::time::timeout(LOOK, self.leave.word.notified())
                .await
                .is_ok()
            {
                return;
            }
            let pressed = self.places.is_pressed();
            if self.lock().is_outlived(patience, pressed) {
                return;
            }
        }
    }

    /// A number that no other connection of this port ever has.
    pub fn id(&self) -> u64 {
        self.id
    }

    fn change(&self, change: impl FnOnce(&mut Activity)) {
        let mut activity = self.lock();
        let before = self.rank(&activity);
        change(&mut activity);
        let after = self.rank(&activity);
        if before != after {
            self.places.rank(before, after, &self.leave);
        }
    }

    fn rank(&self, activity: &Activity) -> Option<Rank> {
        activity.waits_since().map(|since| (since, self.id))
    }

    fn lock(&self) -> MutexGuard<'_, Activity> {
        lock(&self.activity)
    }
}

struct Activity {
    idle_since: Instant,
    exchanges: BTreeMap<u64, Phase>,
    next: u64,
}

/// Who has to do something next.
#[derive(Clone, Copy)]
enum Phase {
    /// The peer: its body is on the way.
    Receiving(Progress),
    /// The server.
    Working,
    /// The peer: it reads the answer.
    Answering(Progress),
    /// The peer, when it likes: between two messages nothing is held for it.
    Pausing(Instant),
}

/// How a peer gets on with what it has to do.
#[derive(Clone, Copy)]
struct Progress {
    since: Instant,
    /// When something moved last, to [`NOTE`].
    moved: Instant,
    bytes: u64,
}

impl Progress {
    fn begin() -> Self {
        let since = Instant::now();
        Self {
            since,
            moved: since,
            bytes: 0,
        }
    }

    // Ranking costs a lock of the whole port, so not for every chunk.
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.moved.elapsed() > NOTE {
            self.moved = Instant::now();
        }
    }
}

impl Activity {
    fn new() -> Self {
        Self {
            idle_since: Instant::now(),
            exchanges: BTreeMap::new(),
            next: 0,
        }
    }

    /// Since when nothing moves but by the peer; `None` while the server has to work.
    fn waits_since(&self) -> Option<Instant> {
        let mut oldest = None;
        for phase in self.exchanges.values() {
            let moved = match phase {
                Phase::Working => return None,
                Phase::Receiving(progress) | Phase::Answering(progress) => progress.moved,
                Phase::Pausing(since) => *since,
            };
            oldest = Some(oldest.map_or(moved, |oldest: Instant| oldest.min(moved)));
        }
        Some(oldest.unwrap_or(self.idle_since))
    }

    fn is_outlived(&self, patience: Duration, pressed: bool) -> bool {
        let silent = self.exchanges.is_empty() && self.idle_since.elapsed() > IDLE;
        let slow = |p: &Progress| pressed && is_too_slow(p.since.elapsed(), p.bytes);
        silent
            || self.exchanges.values().any(|phase| match phase {
                Phase::Working | Phase::Pausing(_) => false,
                Phase::Receiving(progress) => slow(progress),
                Phase::Answering(progress) => progress.since.elapsed() > patience || slow(progress),
            })
    }
}

fn is_too_slow(elapsed: Duration, bytes: u64) -> bool {
    elapsed > GRACE && bytes < LEAST_RATE.saturating_mul(elapsed.as_secs())
}

/// A request of a connection, until its answer has been sent.
pub struct Exchange {
    life: Arc<Life>,
    id: u64,
}

impl Exchange {
    /// Begins with a body that is on its way, or with work at once.
    pub fn begin(life: &Arc<Life>, has_body: bool) -> Self {
        let mut id = 0;
        life.change(|activity| {
            activity.next += 1;
            id = activity.next;
            let phase = match has_body {
                true => Phase::Receiving(Progress::begin()),
                false => Phase::Working,
            };
            activity.exchanges.insert(id, phase);
        });
        let life = life.clone();
        Self { life, id }
    }

    /// The part of it that a body on its way in tells of.
    pub fn incoming(&self) -> Incoming {
        Incoming {
            life: self.life.clone(),
            id: self.id,
        }
    }

    /// The part of it that tells how an exchange of many messages goes.
    pub fn course(&self) -> Course {
        Course {
            life: self.life.clone(),
            id: self.id,
        }
    }

    /// The answer is ready to be read.
    pub fn answered(&self) {
        self.course().answers();
    }

    /// So many bytes of it went out.
    pub fn sent(&self, bytes: usize) {
        self.life.change(|activity| {
            if let Some(Phase::Answering(progress)) = activity.exchanges.get_mut(&self.id) {
                progress.add(bytes);
            }
        });
    }

    /// The request was refused because others fill all the room.
    pub fn refused(&self) {
        self.course().refused();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.life.change(|activity| {
            activity.exchanges.remove(&self.id);
            activity.idle_since = Instant::now();
        });
    }
}

/// How an exchange of many messages goes, which nobody can see from its bytes: what is slow in the peer
/// is the server's own time otherwise. After the exchange it says nothing.
#[derive(Clone)]
pub struct Course {
    life: Arc<Life>,
    id: u64,
}

impl Course {
    /// The next message may come when the peer likes.
    pub fn pauses(&self) {
        self.enter(Phase::Pausing(Instant::now()));
    }

    /// A message is on its way in.
    pub fn receives(&self) {
        self.enter(Phase::Receiving(Progress::begin()));
    }

    /// It is there, and the server works on it.
    pub fn works(&self) {
        self.enter(Phase::Working);
    }

    /// Its answer is ready to be read.
    pub fn answers(&self) {
        self.enter(Phase::Answering(Progress::begin()));
    }

    /// Something of it was refused because others fill all the room.
    pub fn refused(&self) {
        self.life.places.refused();
    }

    fn enter(&self, next: Phase) {
        self.life.change(|activity| {
            if let Some(phase) = activity.exchanges.get_mut(&self.id) {
                *phase = next;
            }
        });
    }
}

/// A body on its way in; dropping it says that nobody waits for the rest.
pub struct Incoming {
    life: Arc<Life>,
    id: u64,
}

impl Incoming {
    /// So many bytes came.
    pub fn received(&self, bytes: usize) {
        self.life.change(|activity| {
            if let Some(Phase::Receiving(progress)) = activity.exchanges.get_mut(&self.id) {
                progress.add(bytes);
            }
        });
    }

    /// All of it is there, or not wanted.
    pub fn ended(&self) {
        self.life.change(|activity| {
            if let Some(phase) = activity.exchanges.get_mut(&self.id)
                && matches!(phase, Phase::Receiving(_))
            {
                *phase = Phase::Working;
            }
        });
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.ended();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn has_to_leave(place: &Place) -> bool {
        let word = place.life.leave.word.notified();
        tokio::time::timeout(Duration::ZERO, word).await.is_ok()
    }

    #[tokio::test]
    async fn who_was_waited_for_longest_has_to_leave() {
        let places = Places::new(3);
        let first = places.take().await;
        let second = places.take().await;
        let third = places.take().await;
        // The first has asked since, the third has the server work.
        drop(Exchange::begin(&first.life, false));
        let _working = Exchange::begin(&third.life, false);
        assert!(places.shed());
        assert!(has_to_leave(&second).await);
        assert!(!has_to_leave(&first).await);
        assert!(places.shed());
        assert!(has_to_leave(&first).await);
        assert!(!places.shed());
        assert!(!has_to_leave(&third).await);
    }

    #[tokio::test]
    async fn bodies_and_answers_on_their_way_are_waited_for() {
        let places = Places::new(1);
        let place = places.take().await;
        let exchange = Exchange::begin(&place.life, true);
        let incoming = exchange.incoming();
        assert!(place.life.lock().waits_since().is_some());
        drop(incoming);
        assert!(place.life.lock().waits_since().is_none());
        exchange.answered();
        assert!(place.life.lock().waits_since().is_some());
        assert!(places.shed());
        // Once told, it is not told again.
        drop(exchange);
        assert!(!places.shed());
    }

    #[tokio::test]
    async fn who_pauses_between_messages_is_not_slow() {
        let places = Places::new(1);
        let place = places.take().await;
        let exchange = Exchange::begin(&place.life, true);
        let _incoming = exchange.incoming();
        exchange.answered();
        let course = exchange.course();
        let long_ago = Instant::now().checked_sub(2 * GRACE).unwrap();
        let is_outlived = || {
            let mut activity = place.life.lock();
            if let Some(Phase::Receiving(progress) | Phase::Answering(progress)) =
                activity.exchanges.get_mut(&exchange.id)
            {
                progress.since = long_ago;
            }
            activity.is_outlived(3 * GRACE, true)
        };
        assert!(is_outlived());
        course.pauses();
        assert!(!is_outlived());
        // Its place can be another's all the same.
        assert!(place.life.lock().waits_since().is_some());
        // Within a message it holds what others want.
        course.receives();
        assert!(is_outlived());
        course.works();
        assert!(!is_outlived());
        assert!(place.life.lock().waits_since().is_none());
        course.answers();
        assert!(is_outlived());
        drop(exchange);
        course.answers();
        assert!(place.life.lock().exchanges.is_empty());
    }

    #[tokio::test]
    async fn a_place_that_is_given_up_goes_to_who_waits() {
        let places = Places::new(1);
        let place = places.take().await;
        let other = places.clone();
        let taken = tokio::spawn(async move { other.take().await });
        place.life.leave.word.notified().await;
        drop(place);
        let _place = taken.await.unwrap();
        assert_eq!(lock(&places.waited_for).len(), 1);
    }

    #[test]
    fn a_sender_is_slow_by_what_came_and_not_by_how_often() {
        let minute = Duration::from_secs(60);
        assert!(!is_too_slow(GRACE, 0));
        assert!(is_too_slow(minute, 60));
        assert!(is_too_slow(minute, 60 * LEAST_RATE - 1));
        assert!(!is_too_slow(minute, 60 * LEAST_RATE));
    }
}
