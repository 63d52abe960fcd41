//! Takes options with the prefix `kalam.` out of CREATE TABLE and ALTER TABLE, and applies them.
//!
//! Postgres refuses prefixes that it does not know before an access method is asked. So the statement goes on without them, and when
//! it is through they are set as [`super::stored::set`] does. A session that has not loaded the library yet has the functions.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, NodeTag};

use super::{definition, stored};
use crate::error::OrRaise;
use crate::ffi::catalog::text_of;
use crate::jobs::database;
use crate::tableam::raw::unguarded;

const PREFIX: &CStr = c"kalam";

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// What Postgres passes to the hook, to be passed on.
#[derive(Clone, Copy)]
struct Call {
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
}

/// Installs the hook; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

/// Errors of statements jump over this frame with all they have to say, so nothing in it may own anything.
#[pgrx::pg_guard]
#[allow(clippy::too_many_arguments, reason = "the hook's own signature")]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let call = Call { statement, query, read_only, context, params, environment, destination, completion };
    // SAFETY: Postgres passes a statement whose node says what it is.
    unsafe {
        let node = (*statement).utilityStmt;
        match (*node).type_ {
            NodeTag::T_CreateStmt if has_ours((*node.cast::<pg_sys::CreateStmt>()).options) => create_table(call),
            NodeTag::T_CreateTableAsStmt if has_ours((*(*node.cast::<pg_sys::CreateTableAsStmt>()).into).options) => {
                create_table(call);
            }
            NodeTag::T_AlterTableStmt if alters_ours(node.cast()) => alter_table(call),
            NodeTag::T_DropdbStmt | NodeTag::T_RenameStmt | NodeTag::T_AlterDatabaseStmt | NodeTag::T_CreatedbStmt => {
                let cleared = database::clear(database::to_be_alone_in(node));
                go_on(call);
                database::release(cleared, (*node).type_ == NodeTag::T_DropdbStmt);
            }
            _ => go_on(call),
        }
    }
}

/// Has the statement executed.
unsafe fn go_on(call: Call) {
    let Call { statement, query, read_only, context, params, environment, destination, completion } = call;
    // SAFETY: what Postgres passed, or a changed copy of the statement.
    unsafe {
        match PREVIOUS {
            Some(previous) => previous(statement, query, read_only, context, params, environment, destination, completion),
            None => unguarded::standard_ProcessUtility(
                statement,
                query,
                read_only,
                context,
                params,
                environment,
                destination,
                completion,
            ),
        }
    }
}

/// The cells of a list of nodes.
///
/// # Safety
/// The list is one of pointers, or null.
pub unsafe fn elements<'l, T>(list: *mut pg_sys::List) -> &'l [*mut T] {
    // SAFETY: a list of Postgres holds that many cells; those of a list of nodes are pointers.
    unsafe {
        if list.is_null() {
            return &[];
        }
        std::slice::from_raw_parts((*list).elements.cast::<*mut T>(), (*list).length as usize)
    }
}

unsafe fn is_ours(option: *mut pg_sys::DefElem) -> bool {
    // SAFETY: a node of a parsed statement.
    unsafe { !(*option).defnamespace.is_null() && CStr::from_ptr((*option).defnamespace) == PREFIX }
}

unsafe fn has_ours(options: *mut pg_sys::List) -> bool {
    // SAFETY: a list of options.
    unsafe { elements(options).iter().any(|option| is_ours(*option)) }
}

unsafe fn changes_options(command: *mut pg_sys::AlterTableCmd) -> bool {
    // SAFETY: a node of a parsed statement.
    matches!(unsafe { (*command).subtype }, pg_sys::AlterTableType::AT_SetRelOptions | pg_sys::AlterTableType::AT_ResetRelOptions)
}

unsafe fn alters_ours(statement: *mut pg_sys::AlterTableStmt) -> bool {
    // SAFETY: the commands of the statement; those about options have a list of them.
    unsafe {
        elements::<pg_sys::AlterTableCmd>((*statement).cmds)
            .iter()
            .any(|command| changes_options(*command) && has_ours((**command).def.cast()))
    }
}

/// Takes our options out of a list; returns them as a list of their own.
unsafe fn take_ours(options: *mut *mut pg_sys::List) -> *mut pg_sys::List {
    let mut taken: *mut pg_sys::List = std::ptr::null_mut();
    let mut left: *mut pg_sys::List = std::ptr::null_mut();
    // SAFETY: a list of options of a statement that is ours to change; the lists are allocated by Postgres.
    unsafe {
        for option in elements::<pg_sys::DefElem>(*options) {
            let target = if is_ours(*option) { &mut taken } else { &mut left };
            *target = pg_sys::lappend(*target, option.cast());
        }
        *options = left;
    }
    taken
}

/// Raises an error for options that no table could have, before the statement does anything.
unsafe fn check(options: *mut pg_sys::List, with_values: bool) {
    // SAFETY: options of the statement.
    unsafe {
        for option in elements::<pg_sys::DefElem>(options) {
            let definition = definition::find(&text_of((**option).defname)).or_raise();
            if with_values {
                definition.normalize(&text_of(pg_sys::defGetString(*option))).or_raise();
            }
        }
    }
}

unsafe fn apply(relation: pg_sys::Oid, options: *mut pg_sys::List, with_values: bool) {
    // SAFETY: options of the statement, which were checked.
    unsafe {
        stored::require_settable(relation);
        for option in elements::<pg_sys::DefElem>(options) {
            let value = with_values.then(|| text_of(pg_sys::defGetString(*option)));
            stored::set(relation, &text_of((**option).defname), value.as_deref());
        }
    }
}

unsafe fn copy_of(statement: *mut pg_sys::PlannedStmt) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the statement may belong to a cached plan, so a copy of it is changed.
    unsafe { pg_sys::copyObjectImpl(statement.cast()).cast() }
}

unsafe fn create_table(mut call: Call) {
    // SAFETY: a CREATE TABLE or CREATE TABLE AS with options.
    unsafe {
        call.statement = copy_of(call.statement);
        call.read_only = false;
        let node = (*call.statement).utilityStmt;
        let (options, relation, may_exist) = if (*node).type_ == NodeTag::T_CreateStmt {
            let create = node.cast::<pg_sys::CreateStmt>();
            (&raw mut (*create).options, (*create).relation, (*create).if_not_exists)
        } else {
            let create = node.cast::<pg_sys::CreateTableAsStmt>();
            (&raw mut (*(*create).into).options, (*(*create).into).rel, (*create).if_not_exists)
        };
        // The statement may change its own copy of the name.
        let relation: *mut pg_sys::RangeVar = pg_sys::copyObjectImpl(relation.cast()).cast();
        let ours = take_ours(options);
        check(ours, true);
        let existed = may_exist && new_relation(relation) != pg_sys::InvalidOid;
        go_on(call);
        if !existed {
            pg_sys::CommandCounterIncrement();
            apply(new_relation(relation), ours, true);
        }
    }
}

/// The relation of that name in the schema where the statement creates it.
unsafe fn new_relation(relation: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: a name of the statement.
    unsafe { pg_sys::get_relname_relid((*relation).relname, pg_sys::RangeVarGetCreationNamespace(relation)) }
}

unsafe fn alter_table(mut call: Call) {
    // SAFETY: an ALTER TABLE that sets or resets options.
    unsafe {
        call.statement = copy_of(call.statement);
        call.read_only = false;
        let statement = (*call.statement).utilityStmt.cast::<pg_sys::AlterTableStmt>();
        let mut left: *mut pg_sys::List = std::ptr::null_mut();
        let mut ours: *mut pg_sys::List = std::ptr::null_mut();
        for command in elements::<pg_sys::AlterTableCmd>((*statement).cmds) {
            if changes_options(*command) && has_ours((**command).def.cast()) {
                let mut options: *mut pg_sys::List = (**command).def.cast();
                let copy: *mut pg_sys::AlterTableCmd = pg_sys::copyObjectImpl((*command).cast()).cast();
                (*copy).def = take_ours(&raw mut options).cast();
                check((*copy).def.cast(), (*copy).subtype == pg_sys::AlterTableType::AT_SetRelOptions);
                ours = pg_sys::lappend(ours, copy.cast());
                if options.is_null() {
                    continue;
                }
                (**command).def = options.cast();
            }
            left = pg_sys::lappend(left, command.cast());
        }
        let relation = if left.is_null() { lock_alone(statement) } else { alter_rest(call, statement, left) };
        if relation != pg_sys::InvalidOid {
            for command in elements::<pg_sys::AlterTableCmd>(ours) {
                apply(relation, (**command).def.cast(), (**command).subtype == pg_sys::AlterTableType::AT_SetRelOptions);
            }
        }
    }
}

/// Locks the table of a statement that says nothing but our options.
unsafe fn lock_alone(statement: *mut pg_sys::AlterTableStmt) -> pg_sys::Oid {
    // SAFETY: the name of the statement; the callback checks the rights before the lock is waited for.
    unsafe {
        let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        let flags = if (*statement).missing_ok { pg_sys::RVROption::RVR_MISSING_OK } else { 0 };
        let owned: pg_sys::RangeVarGetRelidCallback = Some(unguarded::RangeVarCallbackOwnsRelation);
        let relation = pg_sys::RangeVarGetRelidExtended((*statement).relation, lock, flags, owned, std::ptr::null_mut());
        if relation == pg_sys::InvalidOid {
            pgrx::notice!("relation \"{}\" does not exist, skipping", text_of((*(*statement).relation).relname));
        }
        relation
    }
}

/// Has the rest of the statement executed; returns its table.
unsafe fn alter_rest(call: Call, statement: *mut pg_sys::AlterTableStmt, left: *mut pg_sys::List) -> pg_sys::Oid {
    // SAFETY: as above.
    unsafe {
        (*statement).cmds = left;
        let relation: *mut pg_sys::RangeVar = pg_sys::copyObjectImpl((*statement).relation.cast()).cast();
        go_on(call);
        pg_sys::CommandCounterIncrement();
        let lock = pg_sys::NoLock as pg_sys::LOCKMODE;
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(relation, lock, flags, None, std::ptr::null_mut())
    }
}
