//! What the planner is told of user tables: that each row it reads has the statement's user in `_user_id`.
//!
//! Keys and indexes of user tables begin with `_user_id`, which queries do not name. So `_user_id = kalam.scan_user()` is added to
//! the conditions of each user table in a query, as if its author had written it: the planner can use the indexes, and sorts and
//! joins by the columns behind. The condition protects nothing, the access method does; where a scan would only compute it for
//! each row it is taken out of the plan again.

use std::ffi::{CStr, c_char, c_void};

use kalamdb_engine::{Error, ErrorKind};
use pgrx::{pg_guard, pg_sys};

use super::context::{User, enter_planner, is_partitioned, leave, may_plan_key_check, user_of_session};
use super::tree::first_leaf;
use super::{is_user_table, may_have_users};
use crate::error::SqlError;
use crate::ffi::compat;
use crate::ffi::plain;
use crate::tableam::scan::Scan;
use crate::tableam::stream;

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;
static mut PREVIOUS_ANALYZE: pg_sys::post_parse_analyze_hook_type = None;

/// Installs the hooks; once per process.
pub fn init() {
    // SAFETY: hooks are chained while the library is loaded, by the process' only thread; the functions stay loaded.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(plan);
        PREVIOUS_ANALYZE = pg_sys::post_parse_analyze_hook;
        pg_sys::post_parse_analyze_hook = Some(analyzed);
    }
}

/// The elements of a list of nodes.
///
/// # Safety
/// A list of pointers, or none, that does not change meanwhile.
pub unsafe fn nodes<T>(list: *mut pg_sys::List) -> impl Iterator<Item = *mut T> {
    // SAFETY: a list of pointers, or none; it does not change meanwhile.
    unsafe {
        let (count, cells) =
            if list.is_null() { (0, std::ptr::null_mut()) } else { ((*list).length.max(0) as usize, (*list).elements) };
        (0..count).map(move |place| (*cells.add(place)).ptr_value.cast::<T>())
    }
}

/// The tables of a list of range table entries.
///
/// # Safety
/// A list of range table entries, or none.
pub unsafe fn relations(entries: *mut pg_sys::List) -> impl Iterator<Item = pg_sys::Oid> {
    // SAFETY: see above.
    unsafe {
        nodes::<pg_sys::RangeTblEntry>(entries)
            .filter(|entry| (**entry).rtekind == pg_sys::RTEKind::RTE_RELATION)
            .map(|entry| (*entry).relid)
    }
}

unsafe fn tag(node: *mut pg_sys::Node) -> pg_sys::NodeTag {
    // SAFETY: every node begins with its tag.
    unsafe { (*node).type_ }
}

/// Makes plans of queries over user tables depend on the role and on row_security, as those of tables with policies do: a plan
/// made for one user's rows is not the plan for everybody's.
#[pg_guard]
unsafe extern "C-unwind" fn analyzed(
    state: *mut pg_sys::ParseState,
    query: *mut pg_sys::Query,
    jumble: *mut pg_sys::JumbleState,
) {
    // SAFETY: a query that was just analyzed.
    unsafe {
        if let Some(previous) = PREVIOUS_ANALYZE {
            previous(state, query, jumble);
        }
        if (*query).commandType != pg_sys::CmdType::CMD_UTILITY {
            let mut found = false;
            note_dependence(query.cast(), (&raw mut found).cast());
            (*query).hasRowSecurity |= found;
        }
    }
}

/// Looks for user tables, and for views, which may have some inside.
#[pg_guard]
unsafe extern "C-unwind" fn note_dependence(node: *mut pg_sys::Node, found: *mut c_void) -> bool {
    // SAFETY: the walkers pass nodes of the query's tree; the context is a flag.
    unsafe {
        if node.is_null() {
            return false;
        }
        if tag(node) != pg_sys::NodeTag::T_Query {
            return pg_sys::expression_tree_walker(node, Some(note_dependence), found);
        }
        let query: *mut pg_sys::Query = node.cast();
        for entry in nodes::<pg_sys::RangeTblEntry>((*query).rtable) {
            if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION {
                continue;
            }
            let kind = (*entry).relkind as u8;
            if kind == pg_sys::RELKIND_VIEW || may_have_users(&*entry) && is_user_table((*entry).relid).is_some() {
                *found.cast::<bool>() = true;
                return true;
            }
        }
        pg_sys::query_tree_walker(query, Some(note_dependence), found, 0)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: std::ffi::c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the hook gets what the planner gets, which may change the tree.
    unsafe {
        let before = enter_planner();
        let mut context = Context { for_one_user: None };
        add_conditions(query.cast(), (&raw mut context).cast());
        let planned = match PREVIOUS_PLANNER {
            Some(previous) => previous(query, text, options, params),
            None => pg_sys::standard_planner(query, text, options, params),
        };
        // Functions that were inlined, and targets of MERGE, were not there before.
        let tables = user_tables(planned);
        if !tables.is_empty() {
            drop_conditions(planned, &tables);
            if let Some(function) = context.function() {
                bind_searches(planned, function, &tables);
            }
        }
        leave(before);
        planned
    }
}

struct Context {
    /// The function that names the user, if the query is planned for one user's rows; unknown until a user table is met.
    for_one_user: Option<Option<pg_sys::Oid>>,
}

impl Context {
    fn function(&mut self) -> Option<pg_sys::Oid> {
        *self.for_one_user.get_or_insert_with(|| {
            let for_all = may_plan_key_check() || matches!(user_of_session(), Ok(User::All));
            if for_all { None } else { scan_user_function() }
        })
    }
}

/// The function `kalam.scan_user()`.
fn scan_user_function() -> Option<pg_sys::Oid> {
    user_function(c"scan_user")
}

/// A function of ours without arguments.
pub fn user_function(name: &'static CStr) -> Option<pg_sys::Oid> {
    // SAFETY: a list of two names; no argument types are needed for a function without arguments.
    unsafe {
        let names = pg_sys::lappend(std::ptr::null_mut(), pg_sys::makeString(c"kalam".as_ptr().cast_mut()).cast());
        let names = pg_sys::lappend(names, pg_sys::makeString(name.as_ptr().cast_mut()).cast());
        let function = pg_sys::LookupFuncName(names, 0, std::ptr::null(), true);
        (function != pg_sys::InvalidOid).then_some(function)
    }
}

/// Adds the condition wherever a query reads a user table.
#[pg_guard]
unsafe extern "C-unwind" fn add_conditions(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: the walkers pass nodes of the query's tree; the context is ours.
    unsafe {
        if node.is_null() {
            return false;
        }
        if tag(node) != pg_sys::NodeTag::T_Query {
            return pg_sys::expression_tree_walker(node, Some(add_conditions), context);
        }
        let query: *mut pg_sys::Query = node.cast();
        let mut tables = Vec::new();
        for (place, entry) in nodes::<pg_sys::RangeTblEntry>((*query).rtable).enumerate() {
            if may_have_users(&*entry)
                && let Some((column, collation)) = is_user_table((*entry).relid)
            {
                tables.push(Table { entry: place as i32 + 1, column, collation });
            }
        }
        if !tables.is_empty() {
            let context = &mut *context.cast::<Context>();
            refuse_update_of_stream(query, &tables);
            complete_arbiter(query, &tables);
            if let Some(function) = context.function() {
                add_to_joins((*query).jointree.cast(), &tables, function);
            }
        }
        pg_sys::query_tree_walker(query, Some(add_conditions), context, 0)
    }
}

/// A user table in a query's range table.
struct Table {
    entry: i32,
    column: i32,
    collation: pg_sys::Oid,
}

impl Table {
    unsafe fn column(&self) -> *mut pg_sys::Var {
        // SAFETY: allocates a node.
        unsafe { pg_sys::makeVar(self.entry, self.column as i16, pg_sys::TEXTOID, -1, self.collation, 0) }
    }

    /// `_user_id = kalam.scan_user()`.
    unsafe fn condition(&self, function: pg_sys::Oid) -> *mut pg_sys::Node {
        // SAFETY: allocates nodes.
        unsafe {
            let user = pg_sys::makeFuncExpr(
                function,
                pg_sys::TEXTOID,
                std::ptr::null_mut(),
                pg_sys::DEFAULT_COLLATION_OID,
                pg_sys::InvalidOid,
                pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
            );
            let equal = pg_sys::Oid::from(pg_sys::TextEqualOperator);
            let nothing = pg_sys::InvalidOid;
            let condition =
                pg_sys::make_opclause(equal, pg_sys::BOOLOID, false, self.column().cast(), user.cast(), nothing, self.collation);
            pg_sys::set_opfuncid(condition.cast());
            condition.cast()
        }
    }
}

/// Refuses statements that would update rows of a stream, whether or not there is one to update.
unsafe fn refuse_update_of_stream(query: *mut pg_sys::Query, tables: &[Table]) {
    // SAFETY: an analyzed query, whose tables are locked.
    unsafe {
        let Some(table) = tables.iter().find(|table| table.entry == (*query).resultRelation) else { return };
        let conflict = (*query).onConflict;
        let updates = (*query).commandType == pg_sys::CmdType::CMD_UPDATE
            || !conflict.is_null() && (*conflict).action == pg_sys::OnConflictAction::ONCONFLICT_UPDATE
            || nodes::<pg_sys::MergeAction>((*query).mergeActionList)
                .any(|action| (*action).commandType == pg_sys::CmdType::CMD_UPDATE);
        if !updates {
            return;
        }
        let entry = nodes::<pg_sys::RangeTblEntry>((*query).rtable).nth(table.entry as usize - 1);
        let rel = entry.map_or(std::ptr::null_mut(), |entry| {
            let is_parent = (*entry).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            let leaf = if is_parent { first_leaf((*entry).relid) } else { None };
            pg_sys::RelationIdGetRelation(leaf.unwrap_or((*entry).relid))
        });
        if !rel.is_null() {
            stream::refuse_update(rel);
            plain::RelationClose(rel);
        }
    }
}

/// Makes ON CONFLICT (id) mean the key (_user_id, id).
unsafe fn complete_arbiter(query: *mut pg_sys::Query, tables: &[Table]) {
    // SAFETY: an analyzed query.
    unsafe {
        let conflict = (*query).onConflict;
        let Some(table) = tables.iter().find(|table| table.entry == (*query).resultRelation) else { return };
        if conflict.is_null() || (*conflict).arbiterElems.is_null() {
            return;
        }
        let names_user = nodes::<pg_sys::InferenceElem>((*conflict).arbiterElems).any(|element| {
            let column = (*element).expr;
            tag(column) == pg_sys::NodeTag::T_Var && i32::from((*column.cast::<pg_sys::Var>()).varattno) == table.column
        });
        if !names_user {
            let element = pg_sys::palloc0(size_of::<pg_sys::InferenceElem>()).cast::<pg_sys::InferenceElem>();
            (*element).xpr.type_ = pg_sys::NodeTag::T_InferenceElem;
            (*element).expr = table.column().cast();
            (*conflict).arbiterElems = pg_sys::lappend((*conflict).arbiterElems, element.cast());
        }
    }
}

/// Adds the conditions at the places of the tables in a tree of joins: on the nullable side of an outer join they count before it.
unsafe fn add_to_joins(node: *mut pg_sys::Node, tables: &[Table], function: pg_sys::Oid) {
    // SAFETY: a join tree, whose nodes are changed in place.
    unsafe {
        match tag(node) {
            pg_sys::NodeTag::T_FromExpr => {
                let from: *mut pg_sys::FromExpr = node.cast();
                for item in nodes::<pg_sys::Node>((*from).fromlist) {
                    match table_of(item, tables) {
                        Some(table) => (*from).quals = pg_sys::make_and_qual((*from).quals, table.condition(function)),
                        None => add_to_joins(item, tables, function),
                    }
                }
            }
            pg_sys::NodeTag::T_JoinExpr => {
                let join: *mut pg_sys::JoinExpr = node.cast();
                for side in [&mut (*join).larg, &mut (*join).rarg] {
                    match table_of(*side, tables) {
                        Some(table) => {
                            let alone = pg_sys::lappend(std::ptr::null_mut(), (*side).cast());
                            *side = pg_sys::makeFromExpr(alone, table.condition(function)).cast();
                        }
                        None => add_to_joins(*side, tables, function),
                    }
                }
            }
            _ => {}
        }
    }
}

unsafe fn table_of(node: *mut pg_sys::Node, tables: &[Table]) -> Option<&Table> {
    // SAFETY: a node of a join tree.
    unsafe {
        if tag(node) != pg_sys::NodeTag::T_RangeTblRef {
            return None;
        }
        let entry = (*node.cast::<pg_sys::RangeTblRef>()).rtindex;
        tables.iter().find(|table| table.entry == entry)
    }
}

/// What to do with the conditions of a plan.
trait Visitor {
    /// Looks at a node of the plan.
    ///
    /// # Safety
    /// A node of a finished plan.
    unsafe fn visit(&mut self, plan: *mut pg_sys::Plan);
}

unsafe fn walk(statement: *mut pg_sys::PlannedStmt, visitor: &mut dyn Visitor) {
    // SAFETY: a finished plan.
    unsafe {
        walk_plan((*statement).planTree, visitor);
        for plan in nodes::<pg_sys::Plan>((*statement).subplans) {
            walk_plan(plan, visitor);
        }
    }
}

unsafe fn walk_plan(plan: *mut pg_sys::Plan, visitor: &mut dyn Visitor) {
    // SAFETY: a node of a finished plan, or none; the tag says which struct it is.
    unsafe {
        if plan.is_null() {
            return;
        }
        visitor.visit(plan);
        walk_plan((*plan).lefttree, visitor);
        walk_plan((*plan).righttree, visitor);
        let children = match (*plan).type_ {
            pg_sys::NodeTag::T_Append => (*plan.cast::<pg_sys::Append>()).appendplans,
            pg_sys::NodeTag::T_MergeAppend => (*plan.cast::<pg_sys::MergeAppend>()).mergeplans,
            pg_sys::NodeTag::T_BitmapAnd => (*plan.cast::<pg_sys::BitmapAnd>()).bitmapplans,
            pg_sys::NodeTag::T_BitmapOr => (*plan.cast::<pg_sys::BitmapOr>()).bitmapplans,
            pg_sys::NodeTag::T_CustomScan => (*plan.cast::<pg_sys::CustomScan>()).custom_plans,
            pg_sys::NodeTag::T_SubqueryScan => {
                walk_plan((*plan.cast::<pg_sys::SubqueryScan>()).subplan, visitor);
                return;
            }
            _ => return,
        };
        for child in nodes::<pg_sys::Plan>(children) {
            walk_plan(child, visitor);
        }
    }
}

/// The column that a condition `_user_id = kalam.scan_user()` is about: range table entry and number.
unsafe fn subject(node: *mut pg_sys::Node, function: pg_sys::Oid) -> Option<(u32, i32)> {
    // SAFETY: a node of an expression; the tags say which structs they are.
    unsafe {
        if node.is_null() || tag(node) != pg_sys::NodeTag::T_OpExpr {
            return None;
        }
        // A query may compare with the function by another operator, which is a condition of its own.
        if (*node.cast::<pg_sys::OpExpr>()).opno != pg_sys::Oid::from(pg_sys::TextEqualOperator) {
            return None;
        }
        let arguments: Vec<*mut pg_sys::Node> = nodes((*node.cast::<pg_sys::OpExpr>()).args).collect();
        let is_user = |node: *mut pg_sys::Node| {
            // A condition that the planner has derived from two others names the type once more.
            let node =
                if tag(node) == pg_sys::NodeTag::T_RelabelType { (*node.cast::<pg_sys::RelabelType>()).arg.cast() } else { node };
            tag(node) == pg_sys::NodeTag::T_FuncExpr && (*node.cast::<pg_sys::FuncExpr>()).funcid == function
        };
        let column = match arguments[..] {
            [left, right] if is_user(right) => left,
            [left, right] if is_user(left) => right,
            _ => return None,
        };
        if tag(column) != pg_sys::NodeTag::T_Var {
            return None;
        }
        let column: *mut pg_sys::Var = column.cast();
        Some(((*column).varno as u32, i32::from((*column).varattno)))
    }
}

/// Takes our conditions out of the filters of scans, where they would only cost time.
unsafe fn drop_conditions(statement: *mut pg_sys::PlannedStmt, tables: &[Table]) {
    struct Drop<'t> {
        function: pg_sys::Oid,
        tables: &'t [Table],
    }
    impl Visitor for Drop<'_> {
        unsafe fn visit(&mut self, plan: *mut pg_sys::Plan) {
            // SAFETY: the caller's; the list is the plan's own.
            unsafe {
                let is_ours = |(entry, column): (u32, i32)| {
                    self.tables.iter().any(|table| table.entry as u32 == entry && table.column == column)
                };
                let redundant = |node: *mut pg_sys::Node| subject(node, self.function).is_some_and(is_ours);
                if !nodes::<pg_sys::Node>((*plan).qual).any(redundant) {
                    return;
                }
                let mut kept = std::ptr::null_mut();
                for node in nodes::<pg_sys::Node>((*plan).qual) {
                    if !redundant(node) {
                        kept = pg_sys::lappend(kept, node.cast());
                    }
                }
                (*plan).qual = kept;
            }
        }
    }
    let Some(function) = scan_user_function() else { return };
    // SAFETY: a plan that was just made.
    unsafe { walk(statement, &mut Drop { function, tables }) };
}

/// The user tables of a finished plan.
unsafe fn user_tables(statement: *mut pg_sys::PlannedStmt) -> Vec<Table> {
    // SAFETY: a finished plan, whose tables are locked.
    unsafe {
        let mut tables = Vec::new();
        for (place, entry) in nodes::<pg_sys::RangeTblEntry>((*statement).rtable).enumerate() {
            if (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION
                && let Some((column, collation)) = is_user_table((*entry).relid)
            {
                tables.push(Table { entry: place as i32 + 1, column, collation });
            }
        }
        tables
    }
}

/// Makes every search of an index that begins with the user a search for the statement's user. Most are already; the others would meet
/// entries of whoever the statement names.
unsafe fn bind_searches(statement: *mut pg_sys::PlannedStmt, function: pg_sys::Oid, tables: &[Table]) {
    struct Bind<'t> {
        function: pg_sys::Oid,
        tables: &'t [Table],
    }
    impl Bind<'_> {
        /// Adds the condition about a column to a list of conditions, before those about later columns.
        unsafe fn add(&self, list: &mut *mut pg_sys::List, entry: i32, column: i32, collation: pg_sys::Oid) {
            // SAFETY: a list of a plan that was just made.
            unsafe {
                if !nodes::<pg_sys::Node>(*list).any(|node| subject(node, self.function) == Some((entry as u32, column))) {
                    let condition = Table { entry, column, collation }.condition(self.function);
                    *list = pg_sys::lcons(condition.cast(), *list);
                }
            }
        }
    }
    impl Visitor for Bind<'_> {
        unsafe fn visit(&mut self, plan: *mut pg_sys::Plan) {
            // SAFETY: the caller's; the tag says which struct it is.
            unsafe {
                let (entry, index, conditions, original) = match (*plan).type_ {
                    pg_sys::NodeTag::T_IndexScan => {
                        let scan = &mut *plan.cast::<pg_sys::IndexScan>();
                        (scan.scan.scanrelid, scan.indexid, &mut scan.indexqual, Some(&mut scan.indexqualorig))
                    }
                    pg_sys::NodeTag::T_IndexOnlyScan => {
                        let scan = &mut *plan.cast::<pg_sys::IndexOnlyScan>();
                        (scan.scan.scanrelid, scan.indexid, &mut scan.indexqual, None)
                    }
                    pg_sys::NodeTag::T_BitmapIndexScan => {
                        let scan = &mut *plan.cast::<pg_sys::BitmapIndexScan>();
                        (scan.scan.scanrelid, scan.indexid, &mut scan.indexqual, Some(&mut scan.indexqualorig))
                    }
                    _ => return,
                };
                let Some(table) = self.tables.iter().find(|table| table.entry == entry as i32) else { return };
                if !begins_with_user(index, table.column, table.collation) {
                    return;
                }
                self.add(conditions, pg_sys::INDEX_VAR, 1, table.collation);
                match original {
                    Some(original) => self.add(original, table.entry, table.column, table.collation),
                    None => {
                        let scan = &mut *plan.cast::<pg_sys::IndexOnlyScan>();
                        self.add(&mut scan.recheckqual, pg_sys::INDEX_VAR, 1, table.collation);
                    }
                }
            }
        }
    }
    // SAFETY: a plan that was just made.
    unsafe { walk(statement, &mut Bind { function, tables }) };
}

/// Whether an index of a user table, by its OID, finds the entries of one user without meeting those of others.
unsafe fn begins_with_user(index: pg_sys::Oid, column: i32, collation: pg_sys::Oid) -> bool {
    // SAFETY: the statement holds a lock on the table.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(index);
        if rel.is_null() {
            return false;
        }
        let found = is_sorted_by_user(rel, column, collation);
        plain::RelationClose(rel);
        found
    }
}

/// Whether the entries of an index are in the order of the users as the column has it: what is searched by one order is not found in
/// another.
unsafe fn is_sorted_by_user(index: pg_sys::Relation, column: i32, collation: pg_sys::Oid) -> bool {
    // SAFETY: an open index, whose first key column is always there.
    unsafe {
        i32::from(*(*(*index).rd_index).indkey.values.as_ptr()) == column
            && *(*index).rd_indcollation == collation
            && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
    }
}

/// Whether a statement is what its author has written, and not what rules have made of it.
///
/// # Safety
/// A finished plan, whose tables are locked.
pub unsafe fn is_as_written(statement: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: the caller's. A rule's table stands among those of all that it makes; rules do not change what SELECT reads from a table.
    unsafe {
        let reads = (*statement).commandType == pg_sys::CmdType::CMD_SELECT;
        (*statement).canSetTag && (reads || !relations((*statement).rtable).any(has_rules))
    }
}

/// Whether a table has rules.
pub fn has_rules(table: pg_sys::Oid) -> bool {
    // SAFETY: the caller's statement holds a lock on the table; the reference is given back at once.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(table);
        if rel.is_null() {
            return false;
        }
        let has_some = !(*rel).rd_rules.is_null();
        plain::RelationClose(rel);
        has_some
    }
}

/// Refuses a plan that was made for one user's rows to a statement that is to see everybody's.
///
/// # Safety
/// A finished plan.
///
/// # Errors
/// 0A000; Postgres makes such plans anew, so only a plan that hides its user tables comes here.
pub unsafe fn refuse_plan_of_one_user(statement: *mut pg_sys::PlannedStmt) -> Result<(), SqlError> {
    struct Find {
        statement: *mut pg_sys::PlannedStmt,
        function: pg_sys::Oid,
        found: bool,
    }
    impl Visitor for Find {
        unsafe fn visit(&mut self, plan: *mut pg_sys::Plan) {
            // SAFETY: the caller's; the tag says which struct it is.
            unsafe {
                let conditions = match (*plan).type_ {
                    pg_sys::NodeTag::T_IndexScan => (*plan.cast::<pg_sys::IndexScan>()).indexqualorig,
                    pg_sys::NodeTag::T_IndexOnlyScan => (*plan.cast::<pg_sys::IndexOnlyScan>()).recheckqual,
                    pg_sys::NodeTag::T_BitmapIndexScan => (*plan.cast::<pg_sys::BitmapIndexScan>()).indexqualorig,
                    _ => std::ptr::null_mut(),
                };
                for list in [conditions, (*plan).qual] {
                    self.found |= nodes::<pg_sys::Node>(list).any(|node| subject(node, self.function).is_some());
                }
                let steps = compat::pruning_steps(self.statement, plan);
                self.found |= steps.iter().any(|step| prunes_by(*step, self.function));
            }
        }
    }
    let Some(function) = scan_user_function() else { return Ok(()) };
    let mut find = Find { statement, function, found: false };
    // SAFETY: the caller's.
    unsafe { walk(statement, &mut find) };
    if find.found {
        return Err(Error::new(ErrorKind::Unsupported, "plan was made for the rows of one user")
            .with_detail("With row_security = off the statement is to see the rows of all users.")
            .with_hint("Use DISCARD PLANS, or prepare the statement again.")
            .into());
    }
    Ok(())
}

/// Whether a step of choosing partitions asks for the user.
unsafe fn prunes_by(step: *mut pg_sys::Node, function: pg_sys::Oid) -> bool {
    // SAFETY: a step of a finished plan.
    unsafe {
        tag(step) == pg_sys::NodeTag::T_PartitionPruneStepOp
            && nodes::<pg_sys::Node>((*step.cast::<pg_sys::PartitionPruneStepOp>()).exprs)
                .any(|value| tag(value) == pg_sys::NodeTag::T_FuncExpr && (*value.cast::<pg_sys::FuncExpr>()).funcid == function)
    }
}

/// Takes from what EXPLAIN ANALYZE is about to show what depends on the entries of all users in an index that mixes them.
///
/// # Safety
/// A query that has run.
#[pg_guard]
pub unsafe extern "C-unwind" fn forget_counts_of_others(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the caller's.
    unsafe {
        let state = (*query).planstate;
        if state.is_null() {
            return;
        }
        forget_counts(state, std::ptr::null_mut());
        if touches_mixing_index(state, std::ptr::null_mut()) {
            forget_usage(state, std::ptr::null_mut());
            forget_usage_in((*query).totaltime);
        }
    }
}

/// Whether a plan searches or changes an index that mixes users: how many pages that takes, and how much log, depends on the values of
/// others.
#[pg_guard]
unsafe extern "C-unwind" fn touches_mixing_index(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool {
    // SAFETY: an open index.
    let mixes = |index: pg_sys::Relation| !index.is_null() && unsafe { mixes_users(index) };
    // SAFETY: as in `forget_counts`; a result relation has as many indexes open as it says.
    unsafe {
        let touches = match (*state).type_ {
            pg_sys::NodeTag::T_IndexScanState => mixes((*state.cast::<pg_sys::IndexScanState>()).iss_RelationDesc),
            pg_sys::NodeTag::T_IndexOnlyScanState => mixes((*state.cast::<pg_sys::IndexOnlyScanState>()).ioss_RelationDesc),
            pg_sys::NodeTag::T_BitmapIndexScanState => mixes((*state.cast::<pg_sys::BitmapIndexScanState>()).biss_RelationDesc),
            pg_sys::NodeTag::T_ModifyTableState => {
                let change = &*state.cast::<pg_sys::ModifyTableState>();
                (0..change.mt_nrels.max(0) as usize).any(|number| {
                    let result = &*change.resultRelInfo.add(number);
                    let indexes = if result.ri_IndexRelationDescs.is_null() { 0 } else { result.ri_NumIndices.max(0) as usize };
                    (0..indexes).any(|place| mixes(*result.ri_IndexRelationDescs.add(place)))
                })
            }
            _ => false,
        };
        touches || pg_sys::planstate_tree_walker(state, Some(touches_mixing_index), context)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_usage(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool {
    // SAFETY: as above.
    unsafe {
        all_counters(state).for_each(|counters| forget_usage_in(counters));
        pg_sys::planstate_tree_walker(state, Some(forget_usage), context)
    }
}

unsafe fn forget_usage_in(counters: *mut pg_sys::Instrumentation) {
    // SAFETY: counters of the query, or null.
    if let Some(counters) = unsafe { counters.as_mut() } {
        counters.bufusage = pg_sys::BufferUsage::default();
        counters.walusage = pg_sys::WalUsage::default();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_counts(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool {
    // SAFETY: the walker passes nodes of the executor's tree; the tag says which struct it is.
    unsafe {
        let index = match (*state).type_ {
            pg_sys::NodeTag::T_BitmapIndexScanState => (*state.cast::<pg_sys::BitmapIndexScanState>()).biss_RelationDesc,
            pg_sys::NodeTag::T_IndexOnlyScanState => (*state.cast::<pg_sys::IndexOnlyScanState>()).ioss_RelationDesc,
            _ => std::ptr::null_mut(),
        };
        if (*state).type_ == pg_sys::NodeTag::T_BitmapHeapScanState {
            let bitmap = state.cast::<pg_sys::BitmapHeapScanState>();
            let (rel, scan) = ((*bitmap).ss.ss_currentRelation, (*bitmap).ss.ss_currentScanDesc);
            if !rel.is_null() && !scan.is_null() && is_partitioned(rel) {
                let mut blocks = Scan::of(scan).bitmap_blocks();
                // Which of the user's blocks are there, and whether with their rows, depends on others too.
                if pg_sys::planstate_tree_walker(state, Some(searches_mixing_index), std::ptr::null_mut()) {
                    blocks = (0, 0);
                    for counters in all_counters(state) {
                        (*counters).nfiltered2 = 0.0;
                    }
                }
                compat::set_bitmap_blocks(bitmap, blocks.0, blocks.1);
            }
        }
        if !index.is_null() && mixes_users(index) {
            let is_bitmap = (*state).type_ == pg_sys::NodeTag::T_BitmapIndexScanState;
            for counters in all_counters(state) {
                (*counters).ntuples2 = 0.0;
                if is_bitmap {
                    (*counters).tuplecount = 0.0;
                    (*counters).ntuples = 0.0;
                }
            }
        }
        pg_sys::planstate_tree_walker(state, Some(forget_counts), context)
    }
}

/// What was counted of a node, by all processes together and by each parallel worker.
unsafe fn all_counters(state: *mut pg_sys::PlanState) -> impl Iterator<Item = *mut pg_sys::Instrumentation> {
    // SAFETY: the caller's; the workers' counters follow their number.
    unsafe {
        let workers = (*state).worker_instrument;
        let number = if workers.is_null() { 0 } else { (*workers).num_workers.max(0) as usize };
        let of_workers = (0..number).map(move |worker| (*workers).instrument.as_mut_ptr().add(worker));
        Some((*state).instrument).into_iter().filter(|counters| !counters.is_null()).chain(of_workers)
    }
}

/// Whether a bitmap, or a part of one, comes from an index that mixes users.
#[pg_guard]
unsafe extern "C-unwind" fn searches_mixing_index(state: *mut pg_sys::PlanState, context: *mut c_void) -> bool {
    // SAFETY: as above.
    unsafe {
        if (*state).type_ == pg_sys::NodeTag::T_BitmapIndexScanState {
            let index = (*state.cast::<pg_sys::BitmapIndexScanState>()).biss_RelationDesc;
            return !index.is_null() && mixes_users(index);
        }
        pg_sys::planstate_tree_walker(state, Some(searches_mixing_index), context)
    }
}

/// Whether a search of an index of a user table meets entries of several users.
unsafe fn mixes_users(index: pg_sys::Relation) -> bool {
    // SAFETY: an open index.
    unsafe {
        is_user_table((*(*index).rd_index).indrelid)
            .is_some_and(|(column, collation)| !is_sorted_by_user(index, column, collation))
    }
}
