//! Utility statements (all that are no queries), and the subjects that have a say in them before they run.

use std::ffi::c_char;

use pgrx::pg_sys;

use crate::ffi::unguarded;

/// What a subject does with a statement: it may look at it, change a copy, and has it run by [`Statement::run`].
///
/// It is called without a guard, as a statement may run a user's code, whose errors keep all they have to say only when they jump
/// over the frames below. So the function itself owns nothing; what calls Postgres before and after is a guarded function.
pub type Handler = unsafe fn(Statement);

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;
static mut HANDLERS: &[Handler] = &[];
static mut BEFORE_TRANSACTION_STATEMENT: fn() = || {};

/// A statement on its way through the handlers: what Postgres passes to the hook.
#[derive(Clone, Copy)]
pub struct Statement {
    planned: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
    /// The handlers that have had it.
    passed: usize,
}

/// Installs the hook with those who see statements, the first one first, and with what is called before BEGIN, COMMIT and their like instead;
/// once per process.
pub fn init(handlers: &'static [Handler], before_transaction_statement: fn()) {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread; the function stays loaded.
    unsafe {
        HANDLERS = handlers;
        BEFORE_TRANSACTION_STATEMENT = before_transaction_statement;
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[allow(clippy::too_many_arguments, reason = "the signature is Postgres'")]
unsafe extern "C-unwind" fn process_utility(
    planned: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the statement is as Postgres passed it.
    unsafe {
        // Nobody has a say in BEGIN, COMMIT and their like, which may be two of three statements.
        let is_bare = (*(*planned).utilityStmt).type_ == pg_sys::NodeTag::T_TransactionStmt;
        if is_bare {
            BEFORE_TRANSACTION_STATEMENT();
        }
        let passed = if is_bare { usize::MAX } else { 0 };
        let statement =
            Statement { planned, query, read_only_tree, context, params, environment, destination, completion, passed };
        statement.run();
    }
}

impl Statement {
    /// The parsed statement; its tag says which struct it is.
    ///
    /// # Safety
    /// The statement has not run: that may free it.
    pub unsafe fn node(&self) -> *mut pg_sys::Node {
        // SAFETY: see above.
        unsafe { (*self.planned).utilityStmt }
    }

    /// What is executed, and whether the tree may be changed: not if it belongs to a cached plan.
    pub fn planned(&self) -> (*mut pg_sys::PlannedStmt, bool) {
        (self.planned, self.read_only_tree)
    }

    /// The same statement with another tree in its place, which may be changed.
    pub fn replaced(self, planned: *mut pg_sys::PlannedStmt) -> Statement {
        Statement { planned, read_only_tree: false, ..self }
    }

    /// Has the statement run by those who have not seen it yet, and in the end by Postgres.
    ///
    /// # Safety
    /// Nothing in the frames above owns anything, up to the one that Postgres called.
    pub unsafe fn run(self) {
        // SAFETY: set while the library was loaded, and not changed afterwards; the arguments are those that Postgres passed.
        unsafe {
            let handlers = HANDLERS;
            if let Some(handler) = handlers.get(self.passed) {
                return handler(Statement { passed: self.passed + 1, ..self });
            }
            let last = PREVIOUS.unwrap_or(unguarded::standard_ProcessUtility);
            let Statement { planned, query, read_only_tree, context, params, environment, destination, completion, .. } = self;
            last(planned, query, read_only_tree, context, params, environment, destination, completion);
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
