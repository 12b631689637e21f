//! One bit of every byte of a quote, flipped: what is signed or bound is refused, and what is
//! accepted all the same is known. The crate's documentation explains it ("What is malleable").

mod support;

use std::ops::Range;
use std::thread;

use blindai_core::Collateral;
use blindai_verify::{Policy, observe};
use p256::Scalar;
use p256::elliptic_curve::PrimeField as _;

use support::rows::{ROWS, load};

/// Of the text of Intel's root certificate, which all three chains end with: the flips that leave
/// it a text of that form. The certificate itself is ignored.
const IN_ROOT: usize = 827;

/// A quote with its collateral, pinned as it is.
struct Pinned {
    quote: Vec<u8>,
    collateral: Collateral,
    policy: Policy,
    now: u64,
}

impl Pinned {
    fn new(quote: &str, collateral: &str) -> Self {
        let wanted = |row: &&_| {
            let (q, c, ..): &support::rows::Row = row;
            *q == quote && *c == collateral
        };
        let row = ROWS.iter().find(wanted).unwrap();
        let (quote, collateral) = load(row);
        let collateral = collateral.into();
        let observation = observe(&quote, Some(&collateral), row.2).unwrap();
        Self {
            policy: Policy::from_toml(&observation.to_policy_toml()).unwrap(),
            quote,
            collateral,
            now: row.2,
        }
    }

    fn accepts(&self, quote: &[u8]) -> bool {
        blindai_verify::appraise_quote(quote, &self.collateral, &self.policy, self.now).is_ok()
    }

    /// Where a flipped bit is accepted.
    fn accepted(&self) -> Vec<usize> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let part = self.quote.len().div_ceil(threads);
        let parts = (0..self.quote.len()).step_by(part);
        let parts = parts.map(|at| at..self.quote.len().min(at + part));
        thread::scope(|scope| {
            let running = parts.map(|part| scope.spawn(|| self.accepted_in(part)));
            let running: Vec<_> = running.collect();
            let accepted = running.into_iter().map(|part| part.join().unwrap());
            accepted.collect::<Vec<_>>().concat()
        })
    }

    fn accepted_in(&self, part: Range<usize>) -> Vec<usize> {
        let mut quote = self.quote.clone();
        let flipped = part.filter(|at| {
            quote[*at] ^= 1;
            let accepted = self.accepts(&quote);
            quote[*at] ^= 1;
            accepted
        });
        flipped.collect()
    }

    /// Where the three certificates of the chain begin, and where the last ends.
    fn certificates(&self) -> ([usize; 3], usize) {
        let all = |words: &'static [u8]| {
            let windows = self.quote.windows(words.len()).enumerate();
            let found = windows.filter(move |(_, window)| *window == words);
            found.map(|(at, _)| at).collect::<Vec<_>>()
        };
        let last = all(b"-----END CERTIFICATE-----\n").pop().unwrap();
        let begins = all(b"-----BEGIN CERTIFICATE-----");
        (begins.try_into().unwrap(), last + 26)
    }

    /// Asserts that exactly these are accepted: `lengths`, the line breaks of the two certificates
    /// that count, so many bytes of the text of the third, and all after the last.
    #[track_caller]
    fn assert_accepted(&self, lengths: &[usize], in_root: usize) {
        let accepted = self.accepted();
        let ([leaf, _, root], end) = self.certificates();
        let within = |range: Range<usize>| {
            let inside = accepted.iter().filter(move |at| range.contains(at));
            inside.copied().collect::<Vec<_>>()
        };
        assert_eq!(within(0..leaf), lengths, "signed or bound, but for these");
        let line_breaks = (leaf..root).filter(|at| self.quote[*at] == b'\n');
        assert_eq!(within(leaf..root), line_breaks.collect::<Vec<_>>());
        assert_eq!(within(root..end).len(), in_root);
        let padding: Vec<_> = (end..self.quote.len()).collect();
        assert_eq!(within(end..self.quote.len()), padding);
    }
}

#[test]
fn no_bit_of_an_sgx_quote_that_counts_may_flip() {
    let pinned = Pinned::new("sgx/dcapqvl_00a067110000", "sgx_00a067110000_2025-06");
    // Of the length of the chain, so that it ends in its third certificate.
    pinned.assert_accepted(&[1049], IN_ROOT);
}

#[test]
fn no_bit_of_a_tdx_quote_that_counts_may_flip() {
    let pinned = Pinned::new("tdx/dcapqvl_v4_b0c06f", "tdx_b0c06f_2025-06");
    // The length of all after the report, one less; the outer type of the certification data.
    pinned.assert_accepted(&[632, 764, 765], IN_ROOT);
}

#[test]
fn no_bit_of_a_tdx_quote_of_version_5_that_counts_may_flip() {
    let pinned = Pinned::new("tdx/gotdx_v5_td15_90c06f", "tdx_90c06f_2026-02");
    pinned.assert_accepted(&[834, 835], IN_ROOT);
}

/// The second form of a P-256 signature, whose numbers stand most significant byte first.
fn negate_s(signature: &mut [u8]) {
    let s = Scalar::from_repr(signature[32..].try_into().unwrap()).unwrap();
    let negated = (-s).to_repr();
    assert_ne!(signature[32..], negated[..]);
    signature[32..].copy_from_slice(&negated);
}

#[test]
fn each_signature_of_a_quote_has_a_second_form() {
    for (quote, collateral, signature, enclaves) in [
        // The quoting enclave's stands behind signature, key and report: 64, 64 and 384 bytes.
        (
            "sgx/dcapqvl_00a067110000",
            "sgx_00a067110000_2025-06",
            436,
            436 + 512,
        ),
        // The same, with the type and length of the certification data between.
        (
            "tdx/dcapqvl_v4_b0c06f",
            "tdx_b0c06f_2025-06",
            636,
            636 + 128 + 6 + 384,
        ),
    ] {
        let pinned = Pinned::new(quote, collateral);
        for at in [signature, enclaves] {
            let mut quote = pinned.quote.clone();
            negate_s(&mut quote[at..at + 64]);
            assert!(pinned.accepts(&quote), "{at}");
            quote[at] ^= 1;
            assert!(!pinned.accepts(&quote), "{at}");
        }
    }
}

#[test]
fn the_chain_in_a_quote_is_ignored_when_the_collateral_brings_one() {
    let mut pinned = Pinned::new("sgx/dcapqvl_00a067110000", "sgx_00a067110000_2025-06");
    let ([leaf, ..], end) = pinned.certificates();
    let chain = String::from_utf8(pinned.quote[leaf..end].to_vec()).unwrap();
    let mut changed = pinned.quote.clone();
    changed[leaf..end].fill(b'x');
    let Collateral::Dcap(collateral) = &mut pinned.collateral else {
        panic!("of SGX")
    };
    collateral.pck_certificate_chain = None;
    assert!(pinned.accepts(&pinned.quote) && !pinned.accepts(&changed));
    let Collateral::Dcap(collateral) = &mut pinned.collateral else {
        panic!("of SGX")
    };
    collateral.pck_certificate_chain = Some(chain);
    assert!(pinned.accepts(&changed));
}

#[test]
fn whatever_stands_behind_a_quote_is_ignored() {
    let pinned = Pinned::new("tdx/dcaprs_v4_gcp_00806f", "tdx_00806f_2024-09_crl2025");
    let (_, end) = pinned.certificates();
    let mut quote = pinned.quote.clone();
    assert!(quote.len() > end + 1000);
    quote[end + 1..].fill(0xff);
    assert!(pinned.accepts(&quote));
    quote.truncate(end + 1);
    assert!(pinned.accepts(&quote));
}
