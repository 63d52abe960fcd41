//! The snapshot of a statement that does nothing but wait for a job: it must not be what the job waits for.

use pgrx::pg_sys;

use crate::ffi::extension;
use crate::ffi::utility::elements;

/// Gives the snapshot of the running statement back if nobody uses it any more: the statement, outside of a transaction block, is
/// the call of one function of the extension, which runs now.
pub fn give_back() {
    // SAFETY: what the portal, its statement and its plan have is as Postgres made it; nothing is kept.
    unsafe {
        let isolation = pg_sys::XactIsoLevel as u32;
        let is_alone = !pg_sys::IsTransactionBlock() && pg_sys::ThereAreNoReadyPortals();
        if isolation < pg_sys::XACT_REPEATABLE_READ && is_alone && is_one_call() {
            // No other snapshot can be there: no cursor is open, and nothing that the statement calls has called this. A catalog
            // snapshot that is taken from here on sets it anew.
            pg_sys::InvalidateCatalogSnapshot();
            (*pg_sys::MyProc).xmin = pg_sys::InvalidTransactionId;
        }
    }
}

/// Whether the session's statement is `SELECT function(...)` with a function of the extension and no relation anywhere.
unsafe fn is_one_call() -> bool {
    // SAFETY: as above.
    unsafe {
        let portal = pg_sys::ActivePortal;
        if portal.is_null() || (*portal).strategy != pg_sys::PortalStrategy::PORTAL_ONE_SELECT || (*portal).queryDesc.is_null() {
            return false;
        }
        let statement = (*(*portal).queryDesc).plannedstmt;
        let plan = (*statement).planTree;
        let targets = (*plan).targetlist;
        if (*plan).type_ != pg_sys::NodeTag::T_Result
            || !(*plan).lefttree.is_null()
            || !(*plan).qual.is_null()
            || !(*plan).initPlan.is_null()
            || !(*plan.cast::<pg_sys::Result>()).resconstantqual.is_null()
            || !(*statement).subplans.is_null()
            || targets.is_null()
            || (*targets).length != 1
        {
            return false;
        }
        let target: *mut pg_sys::TargetEntry = (*(*targets).elements).ptr_value.cast();
        let expression = (*target).expr.cast::<pg_sys::Node>();
        if (*expression).type_ != pg_sys::NodeTag::T_FuncExpr {
            return false;
        }
        let call = &*expression.cast::<pg_sys::FuncExpr>();
        let is_plain =
            |argument: &*mut pg_sys::Node| matches!((**argument).type_, pg_sys::NodeTag::T_Const | pg_sys::NodeTag::T_Param);
        if !elements(call.args).iter().all(is_plain) {
            return false;
        }
        let function = call.funcid;
        extension::schema() == Some(pg_sys::get_func_namespace(function))
    }
}
