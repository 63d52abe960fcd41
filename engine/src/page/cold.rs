//! Makes a page that stays in memory the page of a cold block: frozen, and marked so that whoever changes it thaws it.

use super::infomask::*;
use super::*;
use crate::ids::{INVALID_XID, Tid};

impl PageMut<'_> {
    /// Freezes every version and sets `COLD`, when what the page holds has gone into a segment.
    ///
    /// Every snapshot sees every version and nobody has deleted or locked one: what stands in xmax is of a transaction that left no
    /// trace. Nothing of this is logged, since the segment says the same.
    pub fn turn_cold(&mut self, block: u32) {
        if self.as_page().kind() == PageKind::Data {
            for offset in 1..=self.as_page().max_offset() {
                let Some(mut header) = self.as_page().version(offset).map(|version| version.header()) else { continue };
                header.infomask |= HEAP_XMIN_FROZEN;
                header.infomask = header.infomask & !HEAP_XMAX_BITS | HEAP_XMAX_INVALID;
                header.infomask2 &= !(HEAP_KEYS_UPDATED | HEAP_HOT_UPDATED);
                header.xmax = INVALID_XID;
                header.ctid = Tid::new(block, offset);
                // The version was found under this number just now.
                let _ = self.set_header(offset, &header);
            }
            self.set_prune_xid(INVALID_XID);
            self.clear_flags(FULL);
            self.set_flags(ALL_VISIBLE);
        }
        self.set_flags(COLD);
    }
}
