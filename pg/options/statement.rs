//! Takes options with the prefix `kalam.` out of CREATE TABLE and ALTER TABLE, and applies them.
//!
//! Postgres refuses prefixes that it does not know before an access method is asked. So the statement goes on without them, and when
//! it is through they are set as [`super::stored::set`] does. A session that has not loaded the library yet has the functions.

use std::ffi::CStr;

use pgrx::pg_sys::{self, NodeTag};

use super::{definition, stored};
use crate::error::OrRaise;
use crate::ffi::catalog::text_of;
use crate::ffi::unguarded;
use crate::ffi::utility::{Statement, elements};

const PREFIX: &CStr = c"kalam";

/// Takes our options out of a statement, has the rest of it run, and applies them.
///
/// # Safety
/// See [`crate::ffi::utility::Handler`].
pub unsafe fn watch(statement: Statement) {
    // SAFETY: a parsed statement whose tag says what it is.
    unsafe {
        let node = statement.node();
        match (*node).type_ {
            NodeTag::T_CreateStmt if has_ours((*node.cast::<pg_sys::CreateStmt>()).options) => create_table(statement),
            NodeTag::T_CreateTableAsStmt if has_ours((*(*node.cast::<pg_sys::CreateTableAsStmt>()).into).options) => {
                create_table(statement);
            }
            NodeTag::T_AlterTableStmt if alters_ours(node.cast()) => alter_table(statement),
            _ => statement.run(),
        }
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

/// A CREATE TABLE without our options, and the options.
#[derive(Clone, Copy)]
#[repr(C)]
struct Creation {
    planned: *mut pg_sys::PlannedStmt,
    relation: *mut pg_sys::RangeVar,
    options: *mut pg_sys::List,
    /// The relation is there, which IF NOT EXISTS permits.
    existed: bool,
}

unsafe fn create_table(statement: Statement) {
    // SAFETY: a CREATE TABLE or CREATE TABLE AS with options.
    unsafe {
        let creation = prepare_creation(statement.planned().0);
        statement.replaced(creation.planned).run();
        finish_creation(creation);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn prepare_creation(planned: *mut pg_sys::PlannedStmt) -> Creation {
    // SAFETY: see above.
    unsafe {
        let planned = copy_of(planned);
        let node = (*planned).utilityStmt;
        let (options, relation, may_exist) = if (*node).type_ == NodeTag::T_CreateStmt {
            let create = node.cast::<pg_sys::CreateStmt>();
            (&raw mut (*create).options, (*create).relation, (*create).if_not_exists)
        } else {
            let create = node.cast::<pg_sys::CreateTableAsStmt>();
            (&raw mut (*(*create).into).options, (*(*create).into).rel, (*create).if_not_exists)
        };
        // The statement may change its own copy of the name.
        let relation: *mut pg_sys::RangeVar = pg_sys::copyObjectImpl(relation.cast()).cast();
        let options = take_ours(options);
        check(options, true);
        Creation { planned, relation, options, existed: may_exist && new_relation(relation) != pg_sys::InvalidOid }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn finish_creation(creation: Creation) {
    if !creation.existed {
        // SAFETY: the statement has run; what was copied from it is still there.
        unsafe {
            pg_sys::CommandCounterIncrement();
            apply(new_relation(creation.relation), creation.options, true);
        }
    }
}

/// The relation of that name in the schema where the statement creates it.
unsafe fn new_relation(relation: *mut pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: a name of the statement.
    unsafe { pg_sys::get_relname_relid((*relation).relname, pg_sys::RangeVarGetCreationNamespace(relation)) }
}

/// An ALTER TABLE without its commands about our options, and those commands.
#[derive(Clone, Copy)]
#[repr(C)]
struct Alteration {
    planned: *mut pg_sys::PlannedStmt,
    relation: *mut pg_sys::RangeVar,
    commands: *mut pg_sys::List,
    missing_ok: bool,
    /// Nothing else is left of the statement.
    is_all: bool,
}

unsafe fn alter_table(statement: Statement) {
    // SAFETY: an ALTER TABLE that sets or resets options.
    unsafe {
        let alteration = prepare_alteration(statement.planned().0);
        if !alteration.is_all {
            statement.replaced(alteration.planned).run();
        }
        finish_alteration(alteration);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn prepare_alteration(planned: *mut pg_sys::PlannedStmt) -> Alteration {
    // SAFETY: see above.
    unsafe {
        let planned = copy_of(planned);
        let statement = (*planned).utilityStmt.cast::<pg_sys::AlterTableStmt>();
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
        (*statement).cmds = left;
        Alteration {
            planned,
            // The statement may change its own copy of the name.
            relation: pg_sys::copyObjectImpl((*statement).relation.cast()).cast(),
            commands: ours,
            missing_ok: (*statement).missing_ok,
            is_all: left.is_null(),
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn finish_alteration(alteration: Alteration) {
    // SAFETY: the rest of the statement has run, if there was any.
    unsafe {
        let relation = if alteration.is_all { lock_alone(alteration) } else { altered(alteration) };
        if relation == pg_sys::InvalidOid {
            return;
        }
        for command in elements::<pg_sys::AlterTableCmd>(alteration.commands) {
            apply(relation, (**command).def.cast(), (**command).subtype == pg_sys::AlterTableType::AT_SetRelOptions);
        }
    }
}

/// Locks the table of a statement that says nothing but our options.
unsafe fn lock_alone(alteration: Alteration) -> pg_sys::Oid {
    // SAFETY: the name of the statement; the callback checks the rights before the lock is waited for.
    unsafe {
        let lock = pg_sys::ShareUpdateExclusiveLock as pg_sys::LOCKMODE;
        let flags = if alteration.missing_ok { pg_sys::RVROption::RVR_MISSING_OK } else { 0 };
        let owned: pg_sys::RangeVarGetRelidCallback = Some(unguarded::RangeVarCallbackOwnsRelation);
        let relation = pg_sys::RangeVarGetRelidExtended(alteration.relation, lock, flags, owned, std::ptr::null_mut());
        if relation == pg_sys::InvalidOid {
            pgrx::notice!("relation \"{}\" does not exist, skipping", text_of((*alteration.relation).relname));
        }
        relation
    }
}

/// The table of a statement whose rest has run and locked it.
unsafe fn altered(alteration: Alteration) -> pg_sys::Oid {
    // SAFETY: the name of the statement.
    unsafe {
        pg_sys::CommandCounterIncrement();
        let lock = pg_sys::NoLock as pg_sys::LOCKMODE;
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(alteration.relation, lock, flags, None, std::ptr::null_mut())
    }
}
