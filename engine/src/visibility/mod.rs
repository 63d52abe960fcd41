//! Owns the rules that say which row versions a transaction sees, may change, may remove and must freeze: heap's rules.
//!
//! Nothing here keeps state. A version's [`Header`](crate::page::Header) comes from a page whose latch the caller holds, what became
//! of a transaction from a [`TransactionStatus`], and an MVCC reader's view from a [`Snapshot`].
//!
//! Invariant: of each transaction we ask first whether it is the asking one, then whether it runs, then whether it committed. A
//! transaction commits in the commit log before it stops being listed as running; in the other order one that ends between the two
//! questions would look aborted.
//!
//! Every rule that learns the end of a transaction reports it as hints: infomask bits that the caller may OR into the version as
//! long as it holds the latch it read the header under. They spare the next reader the question and never change an answer.

mod dirty;
mod freeze;
mod mvcc;
mod snapshot;
mod transaction;
mod update;
mod vacuum;

#[cfg(test)]
mod tests;

pub use dirty::{DirtyInfo, satisfies_dirty, satisfies_self};
pub use freeze::{FreezeLimits, FreezeTracker, MultiMember, MultiMembers, plan_freeze, would_freeze};
pub use mvcc::satisfies_mvcc;
pub use snapshot::{PlainSnapshot, Snapshot};
pub use transaction::{TransactionStatus, header_is_only_locked, update_xid, xmax_is_locked_only};
pub use update::{TmResult, satisfies_update};
pub use vacuum::{is_surely_dead, satisfies_non_vacuumable, satisfies_vacuum, satisfies_vacuum_horizon};
