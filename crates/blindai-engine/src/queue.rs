//! Requests that wait for a model: bounded, and fair between callers.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Who sent a request. Callers take turns: whoever sends many waits behind himself, and not in front
/// of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller(pub u64);

/// What waits, up to a limit.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    /// Wakes one of those who take whatever there is, or lets the next of them not sleep.
    waits: Notify,
    /// Wakes all who look for what fits to what they have: whom it does not fit must not take the word
    /// from whom it does.
    arrived: Notify,
    limit: usize,
}

struct State<T> {
    /// Callers for whom something waits, in the order of their turns.
    turns: VecDeque<Caller>,
    waiting: HashMap<Caller, VecDeque<(u64, T)>>,
    length: usize,
    next: u64,
    /// How many could take something at once. What they are about to take does not wait.
    idle: usize,
}

/// What became of an item that was to wait.
pub(crate) enum Pushed<T> {
    /// It waits under this number.
    Waits(u64),
    /// It waits under this number, in the place of this other one.
    WaitsInsteadOf(u64, T),
    /// There is no room.
    Refused(T),
}

impl<T> Queue<T> {
    /// A queue of `limit` for so many takers, who are idle.
    pub(crate) fn new(limit: usize, takers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                turns: VecDeque::new(),
                waiting: HashMap::new(),
                length: 0,
                next: 0,
                idle: takers,
            }),
            waits: Notify::new(),
            arrived: Notify::new(),
            limit,
        }
    }

    /// Has an item wait. When there is no room, whoever has the most waiting gives up his last,
    /// unless that is the sender himself: one caller who fills the queue shuts nobody else out.
    pub(crate) fn push(&self, caller: Caller, item: T) -> Pushed<T> {
        let mut state = self.lock();
        let mut evicted = None;
        if state.length >= self.limit.saturating_add(state.idle) {
            match state.longest() {
                Some((longest, most)) if most > state.waiting_for(caller) + 1 => {
                    evicted = state.take_last(longest);
                }
                _ => return Pushed::Refused(item),
            }
        }
        let number = state.put(caller, item);
        drop(state);
        self.waits.notify_one();
        self.arrived.notify_waiters();
        match evicted {
            Some(evicted) => Pushed::WaitsInsteadOf(number, evicted),
            None => Pushed::Waits(number),
        }
    }

    /// Lets go of an item that nobody waits for any more; it may be gone already.
    pub(crate) fn remove(&self, caller: Caller, number: u64) {
        self.lock().remove(caller, number);
    }

    /// The next item, as soon as there is one, for a taker that is idle no longer.
    pub(crate) async fn next(&self) -> T {
        loop {
            {
                let mut state = self.lock();
                if let Some(item) = state.take_if(|_, _| true) {
                    state.idle = state.idle.saturating_sub(1);
                    if state.length > 0 {
                        // Of two words before anybody sleeps, one is kept.
                        self.waits.notify_one();
                    }
                    return item;
                }
            }
            self.waits.notified().await;
        }
    }

    /// A taker is idle again.
    pub(crate) fn finished(&self) {
        self.lock().idle += 1;
    }

    /// The next item that fits, of those whose turn it would be next for their callers.
    pub(crate) fn take_if(&self, fits: impl Fn(Caller, &T) -> bool) -> Option<T> {
        self.lock().take_if(fits)
    }

    /// Ends when something has arrived since the call.
    pub(crate) fn arrival(&self) -> Notified<'_> {
        self.arrived.notified()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().length
    }

    // Every change is complete before anything that could panic.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn put(&mut self, caller: Caller, item: T) -> u64 {
        self.next += 1;
        let items = self.waiting.entry(caller).or_default();
        if items.is_empty() {
            self.turns.push_back(caller);
        }
        items.push_back((self.next, item));
        self.length += 1;
        self.next
    }

    fn take_if(&mut self, fits: impl Fn(Caller, &T) -> bool) -> Option<T> {
        let first_fits = |caller: &Caller| {
            let first = self.waiting.get(caller).and_then(VecDeque::front);
            first.is_some_and(|(_, item)| fits(*caller, item))
        };
        let turn = self.turns.iter().position(first_fits)?;
        let caller = self.turns.remove(turn)?;
        let items = self.waiting.get_mut(&caller)?;
        let (_, item) = items.pop_front()?;
        self.length -= 1;
        match items.is_empty() {
            true => drop(self.waiting.remove(&caller)),
            false => self.turns.push_back(caller),
        }
        Some(item)
    }

    fn take_last(&mut self, caller: Caller) -> Option<T> {
        let (number, _) = self.waiting.get(&caller)?.back()?;
        self.remove(caller, *number)
    }

    fn remove(&mut self, caller: Caller, number: u64) -> Option<T> {
        let items = self.waiting.get_mut(&caller)?;
        let place = items.iter().position(|(own, _)| *own == number)?;
        let (_, item) = items.remove(place)?;
        self.length -= 1;
        if items.is_empty() {
            self.waiting.remove(&caller);
            self.turns.retain(|turn| *turn != caller);
        }
        Some(item)
    }

    fn waiting_for(&self, caller: Caller) -> usize {
        self.waiting.get(&caller).map_or(0, VecDeque::len)
    }

    fn longest(&self) -> Option<(Caller, usize)> {
        let lengths = self
            .waiting
            .iter()
            .map(|(caller, items)| (*caller, items.len()));
        lengths.max_by_key(|(_, length)| *length)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const GREEDY: Caller = Caller(1);
    const MODEST: Caller = Caller(2);

    fn filled(limit: usize, pushes: &[(Caller, u32)]) -> Queue<u32> {
        let queue = Queue::new(limit, 0);
        for (caller, item) in pushes {
            assert!(matches!(queue.push(*caller, *item), Pushed::Waits(_)));
        }
        queue
    }

    fn drain(queue: &Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.take_if(|_, _| true)).collect()
    }

    #[test]
    fn callers_take_turns_and_each_keeps_his_order() {
        let queue = filled(9, &[(GREEDY, 1), (GREEDY, 2), (GREEDY, 3), (MODEST, 9)]);
        assert_eq!(drain(&queue), [1, 9, 2, 3]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_full_queue_sheds_from_the_longest_line() {
        let queue = filled(3, &[(GREEDY, 1), (GREEDY, 2), (GREEDY, 3)]);
        assert!(matches!(queue.push(GREEDY, 4), Pushed::Refused(4)));
        assert!(matches!(
            queue.push(MODEST, 9),
            Pushed::WaitsInsteadOf(_, 3)
        ));
        // Two and one: taking one more would only turn the injustice round.
        assert!(matches!(queue.push(MODEST, 8), Pushed::Refused(8)));
        assert_eq!(drain(&queue), [1, 9, 2]);
    }

    #[test]
    fn who_left_is_not_served() {
        let queue = filled(9, &[(GREEDY, 1)]);
        let Pushed::Waits(number) = queue.push(MODEST, 9) else {
            panic!("there is room");
        };
        queue.remove(MODEST, number);
        queue.remove(MODEST, number);
        assert_eq!((queue.len(), drain(&queue)), (1, vec![1]));
    }

    #[test]
    fn what_does_not_fit_keeps_its_place() {
        let queue = filled(9, &[(GREEDY, 1), (GREEDY, 2), (MODEST, 8)]);
        assert_eq!(queue.take_if(|_, item| item % 2 == 0), Some(8));
        // The 2 fits, but its caller's 1 comes first.
        assert_eq!(queue.take_if(|_, item| item % 2 == 0), None);
        assert_eq!(drain(&queue), [1, 2]);
    }

    #[tokio::test]
    async fn what_an_idle_taker_is_about_to_take_does_not_wait() {
        let queue = Queue::new(1, 1);
        for item in [1, 2] {
            assert!(matches!(queue.push(MODEST, item), Pushed::Waits(_)));
        }
        assert!(matches!(queue.push(MODEST, 3), Pushed::Refused(3)));
        assert_eq!(queue.next().await, 1);
        assert!(matches!(queue.push(MODEST, 3), Pushed::Refused(3)));
        queue.finished();
        assert!(matches!(queue.push(MODEST, 3), Pushed::Waits(_)));
    }

    #[tokio::test]
    async fn who_takes_one_of_several_wakes_the_next() {
        let queue = filled(9, &[(GREEDY, 1), (MODEST, 2)]);
        // The one word that was kept of both.
        queue.waits.notified().await;
        assert_eq!(queue.next().await, 1);
        let word = timeout(Duration::ZERO, queue.waits.notified()).await;
        assert!(word.is_ok());
        assert_eq!(queue.next().await, 2);
        let word = timeout(Duration::ZERO, queue.waits.notified()).await;
        assert!(word.is_err(), "nobody is woken for nothing");
    }

    #[tokio::test]
    async fn who_looks_for_what_fits_keeps_nobody_from_it() {
        let queue = Queue::new(9, 2);
        let gathering = [queue.arrival(), queue.arrival()];
        let mut next = pin!(queue.next());
        assert!(timeout(Duration::ZERO, &mut next).await.is_err());
        queue.push(MODEST, 1);
        assert_eq!(next.await, 1);
        for arrival in gathering {
            let told = timeout(Duration::ZERO, arrival).await;
            assert!(told.is_ok(), "though it had not begun to wait");
        }
        assert!(timeout(Duration::ZERO, queue.arrival()).await.is_err());
    }
}
