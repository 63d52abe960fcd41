//! Has job processes leave a database that a statement wants for itself: to drop, rename, move or copy it.
//!
//! Postgres waits five seconds for others to leave such a database. A job that runs there ends; if the statement fails, it is run again.

use std::ffi::{CStr, c_char};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kalamdb_engine::cache::{Wait, futex};
use pgrx::pg_sys::{self, NodeTag};

use super::process;
use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::catalog;
use crate::ffi::interrupts::BackendWait;
use crate::ffi::utility::{Statement, elements};
use crate::shmem::attached_cache;

/// How long job processes may take to leave before Postgres itself is left to refuse the statement.
const LEAVE_LIMIT: Duration = Duration::from_secs(4);

/// How long no process is started for the database if the statement fails.
const HOLD_MILLISECONDS: u64 = 6_000;

/// Has job processes leave a database that a statement wants for itself, while it runs.
///
/// # Safety
/// See [`crate::ffi::utility::Handler`].
pub unsafe fn watch(statement: Statement) {
    // SAFETY: a parsed statement, looked at before it runs, which may free it.
    unsafe {
        let tag = (*statement.node()).type_;
        if !matches!(tag, NodeTag::T_DropdbStmt | NodeTag::T_RenameStmt | NodeTag::T_AlterDatabaseStmt | NodeTag::T_CreatedbStmt)
        {
            return statement.run();
        }
        refuse_move(statement.node());
        let cleared = clear(statement.node());
        statement.run();
        release(cleared, tag == NodeTag::T_DropdbStmt);
    }
}

/// Refuses to move a database with tables of ours to another tablespace: what the engine has of them is kept under the tablespace, too.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn refuse_move(node: *mut pg_sys::Node) {
    // SAFETY: the tag says what the node is; its strings live as long as it does; looks into the catalog.
    let (name, database) = unsafe {
        if (*node).type_ != NodeTag::T_AlterDatabaseStmt || to_be_alone_in(node).is_null() {
            return;
        }
        let name = to_be_alone_in(node);
        (catalog::text_of(name), pg_sys::get_database_oid(name, true).to_u32())
    };
    // Before there are tables of ours, nobody has made the cache.
    let has_tables =
        attached_cache().is_some_and(|cache| cache.storages().in_use().any(|descriptor| descriptor.file().database == database));
    if has_tables {
        raise(
            SqlError::unsupported(format!("database \"{name}\" has tables of KalamDB and cannot be moved to another tablespace"))
                .with_detail("What the engine keeps of a table it finds by the tablespace that the table is in.")
                .with_hint("Move single tables with ALTER TABLE ... SET TABLESPACE, or dump the database and restore it into another one."),
        );
    }
}

/// The name of the database that a statement wants for itself; null if there is none.
///
unsafe fn to_be_alone_in(node: *mut pg_sys::Node) -> *const c_char {
    // SAFETY: the tag says what the node is; its strings live as long as it does.
    unsafe {
        match (*node).type_ {
            NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            NodeTag::T_RenameStmt => {
                let rename = &*node.cast::<pg_sys::RenameStmt>();
                if rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE { rename.subname } else { std::ptr::null() }
            }
            NodeTag::T_AlterDatabaseStmt => {
                let alter = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                if option(alter.options, c"tablespace").is_null() { std::ptr::null() } else { alter.dbname }
            }
            NodeTag::T_CreatedbStmt => {
                let template = option((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template");
                if template.is_null() || (*template).arg.is_null() { std::ptr::null() } else { pg_sys::defGetString(template) }
            }
            _ => std::ptr::null(),
        }
    }
}

unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> *mut pg_sys::DefElem {
    // SAFETY: options of a statement have names.
    unsafe {
        let mut found = elements::<pg_sys::DefElem>(options).iter().filter(|option| CStr::from_ptr((***option).defname) == name);
        found.next().copied().unwrap_or(std::ptr::null_mut())
    }
}

/// Has all job processes leave the database of a statement, if the current user may alter it. Returns its OID, or the invalid one.
///
/// # Safety
/// The node is a statement about databases or names.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn clear(node: *mut pg_sys::Node) -> pg_sys::Oid {
    // SAFETY: see above.
    let name = unsafe { to_be_alone_in(node) };
    let Some(cache) = attached_cache() else { return pg_sys::InvalidOid };
    if name.is_null() {
        return pg_sys::InvalidOid;
    }
    // SAFETY: the name is a terminated string; looks into the catalog.
    let oid = unsafe { pg_sys::get_database_oid(name, true) };
    if oid == pg_sys::InvalidOid || !catalog::is_owner_of_database(oid) {
        return pg_sys::InvalidOid;
    }
    let (board, database) = (cache.jobs(), oid.to_u32());
    board.hold(database, process::now() + HOLD_MILLISECONDS);
    let begun = Instant::now();
    let wait = BackendWait::new(cache);
    while board.is_connected(database) && begun.elapsed() < LEAVE_LIMIT {
        for leaving in board.alive().filter(|process| process.database() == database) {
            let pid = leaving.pid.load(Ordering::Acquire);
            if pid != 0 {
                // SAFETY: signals a process of this server.
                unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
            }
        }
        let seen = board.changed.load(Ordering::Acquire);
        futex::wait_for(&board.changed, seen, Duration::from_millis(20));
        wait.pause().or_raise();
    }
    oid
}

/// Lets processes start again in a database that the statement left alone, or forgets one that it dropped.
#[pgrx::pg_guard]
extern "C-unwind" fn release(database: pg_sys::Oid, dropped: bool) {
    let Some(cache) = attached_cache() else { return };
    if database == pg_sys::InvalidOid {
        return;
    }
    if dropped {
        cache.jobs().forget_database(database.to_u32());
    } else {
        cache.jobs().hold(database.to_u32(), 0);
    }
}
