//! The rows that the running transaction has deleted and not yet written to `kalam.deleted_rows`.
//!
//! Invariant: a subtransaction writes only what itself and its committed children deleted. So whatever a rollback takes back, it
//! takes back the deletion and the entry together.

use std::cell::{Cell, RefCell};

use kalamdb_engine::ids::Tid;
use pgrx::pg_sys;

use super::{entry, table};
use crate::ffi::catalog::relation_exists;
use crate::gate;

/// Bytes of rows from which on an entry is written.
const ENTRY_BYTES: usize = 64 << 10;

/// The next entry of one table.
pub struct Pending {
    sub: pg_sys::SubTransactionId,
    /// The table.
    pub relation: pg_sys::Oid,
    /// Its row type: with the OID it names a table of a database beyond reuse of one of them.
    pub row_type: pg_sys::Oid,
    /// Whose rows they are, in a user table.
    pub user: Option<Box<[u8]>>,
    /// What the columns were.
    pub shape: Vec<u8>,
    /// The rows.
    pub rows: Vec<u8>,
    /// Whether the table may have changed since; then the entry takes no more rows.
    closed: bool,
}

thread_local! {
    static PENDING: RefCell<Vec<Pending>> = const { RefCell::new(Vec::new()) };
    /// Whether this process has told Postgres that it wants to hear of changed tables.
    static LISTENS: Cell<bool> = const { Cell::new(false) };
}

/// Adds a row to the entry of its table; writes the entry when it is long enough.
pub fn add(rel: pg_sys::Relation, tid: Tid, tuple: &[u8]) {
    listen();
    let user = gate::owner_of_row(rel, tuple);
    // SAFETY: the relation is open.
    let (relation, row_type) = unsafe { ((*rel).rd_id, (*(*rel).rd_rel).reltype) };
    // SAFETY: reads the backend's own state.
    let sub = unsafe { pg_sys::GetCurrentSubTransactionId() };
    let full = PENDING.with_borrow_mut(|pending| {
        let fits = |entry: &Pending| !entry.closed && entry.sub == sub && entry.relation == relation && entry.user == user;
        let place = match pending.iter().rposition(fits) {
            Some(place) => place,
            None => {
                let shape = entry::shape_of(rel);
                pending.push(Pending { sub, relation, row_type, user: user.clone(), shape, rows: Vec::new(), closed: false });
                pending.len() - 1
            }
        };
        entry::push_row(&mut pending[place].rows, tid, tuple);
        (pending[place].rows.len() >= ENTRY_BYTES).then(|| pending.swap_remove(place))
    });
    if let Some(entry) = full {
        table::write(std::slice::from_ref(&entry));
    }
}

/// Calls `visit` with every entry of a table that is not written yet.
pub fn each_pending(relation: pg_sys::Oid, visit: &mut dyn FnMut(&Pending)) {
    PENDING.with_borrow(|pending| pending.iter().filter(|entry| entry.relation == relation).for_each(visit));
}

/// Writes everything; only the outermost transaction does, at its end.
fn write_all() {
    let mut pending = PENDING.take();
    // Nobody asks for the rows of a table that the transaction has dropped as well.
    pending.retain(|entry| !entry.closed || relation_exists(entry.relation));
    if !pending.is_empty() {
        table::write(&pending);
    }
}

/// Hears of changed tables, from the first deleted row on: most processes have none.
fn listen() {
    if !LISTENS.replace(true) {
        // SAFETY: a plain function that stays loaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0)) };
    }
}

unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    // Called at any moment, also while an entry is being written; what is taken out of the buffer gets no more rows anyway.
    PENDING.with(|pending| {
        if let Ok(mut pending) = pending.try_borrow_mut() {
            let concerned = |entry: &&mut Pending| relation == pg_sys::InvalidOid || entry.relation == relation;
            pending.iter_mut().filter(concerned).for_each(|entry| entry.closed = true);
        }
    });
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT | pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => write_all(),
        pg_sys::XactEvent::XACT_EVENT_ABORT => drop(PENDING.take()),
        _ => {}
    }
}

unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    sub: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => PENDING.with_borrow_mut(|pending| {
            pending.iter_mut().filter(|entry| entry.sub == sub).for_each(|entry| entry.sub = parent);
        }),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            PENDING.with_borrow_mut(|pending| pending.retain(|entry| entry.sub != sub));
        }
        _ => {}
    }
}

/// Registers the callbacks; once per process.
pub fn init() {
    // SAFETY: plain functions that stay loaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}
