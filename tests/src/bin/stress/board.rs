//! What the clients tell each other outside of the server: how far each is, when to stop, and how often the server was struck.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

#[derive(Default)]
pub struct Board {
    pub stop: AtomicBool,
    /// Counted before and after each blow: odd while somebody strikes.
    blows: AtomicU64,
    /// Number of each client's last commit that was sent, and of its last that was acknowledged.
    attempted: Vec<AtomicI64>,
    acknowledged: Vec<AtomicI64>,
    /// Transactions of all kinds that went through, and those that the server rolled back.
    pub done: AtomicU64,
    pub aborted: AtomicU64,
    pub looks: AtomicU64,
    /// Calls of flush and compaction in a session, and the blocks that became cold or were written into other segments.
    pub coolings: AtomicU64,
    pub cooled_blocks: AtomicI64,
    pub rewritten_blocks: AtomicI64,
    pub jobs: AtomicU64,
    pub vacuums: AtomicU64,
}

impl Board {
    pub fn new(clients: u32) -> Board {
        let numbers = || (0..clients).map(|_| AtomicI64::new(0)).collect();
        Board { attempted: numbers(), acknowledged: numbers(), ..Board::default() }
    }

    pub fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// To be called before and after a blow.
    pub fn note_blow(&self) {
        self.blows.fetch_add(1, Ordering::SeqCst);
    }

    /// Says whether a session that begins after this call was struck.
    pub fn watch(&self) -> impl Fn() -> bool + '_ {
        let before = self.blows.load(Ordering::SeqCst);
        move || before % 2 == 1 || self.blows.load(Ordering::SeqCst) > before
    }

    pub fn attempt(&self, client: u32, seq: i64) {
        self.attempted[client as usize].store(seq, Ordering::SeqCst);
    }

    pub fn acknowledge(&self, client: u32, seq: i64) {
        self.acknowledged[client as usize].store(seq, Ordering::SeqCst);
    }

    pub fn attempted(&self) -> Vec<i64> {
        self.attempted.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    pub fn acknowledged(&self) -> Vec<i64> {
        self.acknowledged.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    pub fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the others time to change and move what a snapshot shows.
    pub fn linger(&self, rng: &mut ChaCha8Rng) {
        if !self.stops() && rng.random_ratio(1, 3) {
            std::thread::sleep(Duration::from_millis(rng.random_range(1..40)));
        }
    }
}
