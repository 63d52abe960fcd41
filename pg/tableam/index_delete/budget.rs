//! Decides which blocks a bottom-up deletion visits and when it has done enough.

use std::cmp::Reverse;

/// The most blocks that one bottom-up deletion visits.
pub const BLOCKS_MAX: usize = 6;

/// Blocks that are so near to each other count as contiguous.
const NEAR: u32 = 3;

/// Fewer promising entries of a block than this say nothing.
const PROMISING_MIN: u32 = 4;

/// The entries for one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockGroup {
    /// The block.
    pub block: u32,
    /// Place of its first entry in the order of TIDs.
    pub first: usize,
    /// Number of its entries.
    pub entries: usize,
    /// How many of them the index calls promising.
    pub promising: u32,
}

impl BlockGroup {
    /// Sorts the most worthwhile block first. Numbers are rounded up to powers of two: small differences are noise, and the order
    /// of the blocks on disk counts more.
    pub fn rank(&self) -> (Reverse<u32>, Reverse<usize>, usize) {
        let promising = self.promising.max(PROMISING_MIN).next_power_of_two();
        (Reverse(promising), Reverse(self.entries.next_power_of_two()), self.first)
    }
}

/// How many blocks from the first one on lie near to their predecessor; the first one always counts.
pub fn contiguous(groups: &[BlockGroup]) -> usize {
    let near = groups.windows(2).take_while(|pair| pair[0].block.abs_diff(pair[1].block) <= NEAR);
    1 + near.count()
}

/// Decides when a bottom-up deletion has gained enough, or no longer gains anything.
#[derive(Debug)]
pub struct Budget {
    target: i32,
    gained: i32,
    /// What was gained before the block in work.
    before: i32,
    /// Blocks that may be visited without lowering the target.
    favorable: usize,
    visited: usize,
    is_final: bool,
}

impl Budget {
    /// A budget for so many bytes, with so many blocks at the start that lie together.
    pub fn new(target: i32, favorable: usize) -> Budget {
        Budget { target, gained: 0, before: 0, favorable, visited: 0, is_final: false }
    }

    /// Whether the next block is worth its cost; counts it as visited.
    pub fn may_visit(&mut self) -> bool {
        let was_useless = self.visited > 0 && self.gained == self.before;
        if self.is_final || was_useless {
            return false;
        }
        self.before = self.gained;
        self.visited += 1;
        if self.favorable > 0 {
            self.favorable -= 1;
        } else {
            self.target /= 2;
        }
        true
    }

    /// Adds the space of an entry that goes. The block in work is finished in any case, its cost is paid.
    pub fn gain(&mut self, bytes: i16) {
        self.gained += i32::from(bytes);
        self.is_final |= self.gained >= self.target;
    }
}
