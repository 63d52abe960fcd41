//! Reads deleted rows and brings them back: `kalam.history` and `kalam.undelete`.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::error::{SqlError, raise};
use crate::ffi::compat;
use crate::ffi::function::version_1;
use crate::ffi::plain;
use crate::gate;
use crate::history::{KeptRow, Restored, kept_rows, to_jsonb};
use crate::tableam::raw;
use crate::tableam::storage::{relation_name, require_table};

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

version_1!(pg_finfo_kalam_history, pg_finfo_kalam_history_typed, pg_finfo_kalam_undelete);

/// The result set that Postgres asked for.
unsafe fn result_set(call: pg_sys::FunctionCallInfo, flags: u32) -> *mut pg_sys::ReturnSetInfo {
    // SAFETY: Postgres calls a set-returning function with a ReturnSetInfo, which the initialisation checks.
    unsafe {
        pg_sys::InitMaterializedSRF(call, flags);
        (*call).resultinfo.cast()
    }
}

/// The SQL function `kalam.history(regclass)`: the deleted rows as jsonb.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_history(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function is declared STRICT with one argument of type regclass.
    unsafe {
        let relation = pgrx::fcinfo::pg_getarg_datum_raw(call, 0);
        let rel = open_readable(pg_sys::Oid::from(relation.value() as u32));
        let result = result_set(call, 0);
        kept_rows(rel, &mut |mut kept| {
            let row = to_jsonb(rel, &mut kept.row);
            let mut tid = crate::tableam::slot::item_pointer(kept.tid);
            let mut values =
                [pg_sys::Datum::from(kept.deleted_at), pg_sys::Datum::from(kept.xid), pg_sys::Datum::from(&raw mut tid), row];
            let mut nulls = [false; 4];
            pg_sys::tuplestore_putvalues((*result).setResult, (*result).setDesc, values.as_mut_ptr(), nulls.as_mut_ptr());
        });
        pg_sys::relation_close(rel, LOCK);
    }
    pg_sys::Datum::from(0)
}

/// The SQL function `kalam.history_of(anyelement)`: the deleted rows as rows of the table.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_history_typed(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function is declared with one polymorphic argument, of which only the type matters.
    unsafe {
        let row_type = pg_sys::get_fn_expr_argtype((*call).flinfo, 0);
        let relation = pg_sys::get_typ_typrelid(row_type);
        if relation == pg_sys::InvalidOid || pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_COMPOSITE_TYPE {
            raise(
                SqlError::wrong_object_type("the argument is not a row of a table")
                    .with_hint("Write the NULL row of the table: kalam.history_of(NULL::app.messages)."),
            );
        }
        let rel = open_readable(relation);
        let result = result_set(call, pg_sys::MAT_SRF_USE_EXPECTED_DESC);
        require_columns(rel, (*result).setDesc);
        kept_rows(rel, &mut |mut kept| {
            let (values, nulls) = (kept.row.values.as_mut_ptr(), kept.row.nulls.as_mut_ptr());
            pg_sys::tuplestore_putvalues((*result).setResult, (*result).setDesc, values, nulls);
        });
        pg_sys::relation_close(rel, LOCK);
    }
    pg_sys::Datum::from(0)
}

unsafe fn columns<'d>(descriptor: pg_sys::TupleDesc) -> &'d [pg_sys::FormData_pg_attribute] {
    // SAFETY: the caller's descriptor is valid.
    unsafe { std::slice::from_raw_parts(compat::attributes(descriptor), (*descriptor).natts.max(0) as usize) }
}

/// Raises an error unless rows have the columns that the query was started with: the table was not locked until now.
unsafe fn require_columns(rel: pg_sys::Relation, expected: pg_sys::TupleDesc) {
    // SAFETY: the descriptors of an open relation and of the running query.
    let (present, expected) = unsafe { (columns((*rel).rd_att), columns(expected)) };
    let same = |(present, expected): (&pg_sys::FormData_pg_attribute, &pg_sys::FormData_pg_attribute)| {
        present.attisdropped == expected.attisdropped
            && present.atttypid == expected.atttypid
            && present.attlen == expected.attlen
            && present.attbyval == expected.attbyval
    };
    if present.len() != expected.len() || !present.iter().zip(expected).all(same) {
        raise(
            SqlError::prerequisite(format!(
                "the columns of table \"{}\" have changed since the query was started",
                relation_name(rel)
            ))
            .with_hint("Run the query again."),
        );
    }
}

/// Opens a table of ours of which the current user may read every row.
fn open_readable(relation: pg_sys::Oid) -> pg_sys::Relation {
    // SAFETY: opened with a lock; after an ERROR the resource owner closes it. The checks raise errors as Postgres' own do.
    unsafe {
        let rel = pg_sys::try_relation_open(relation, LOCK);
        if rel.is_null() {
            raise(
                SqlError::undefined_object(format!("relation with OID {} does not exist", relation.to_u32()))
                    .with_hint("Name the table, as in kalam.history('app.messages')."),
            );
        }
        require_table(rel);
        let user = plain::GetUserId();
        let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
        let ok = pg_sys::AclResult::ACLCHECK_OK;
        let all = pg_sys::AclMaskHow::ACLMASK_ALL;
        if pg_sys::pg_class_aclcheck(relation, user, select) != ok
            && pg_sys::pg_attribute_aclcheck_all(relation, user, select, all) != ok
        {
            let no_right = pg_sys::AclResult::ACLCHECK_NO_PRIV;
            pg_sys::aclcheck_error(no_right, pg_sys::ObjectType::OBJECT_TABLE, (*(*rel).rd_rel).relname.data.as_ptr());
        }
        if pg_sys::check_enable_rls(relation, pg_sys::InvalidOid, false) == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32 {
            raise(
                SqlError::unsupported(format!(
                    "the history of table \"{}\" cannot be read under row-level security",
                    relation_name(rel)
                ))
                .with_hint("Its owner, and roles with BYPASSRLS, can read it and bring rows back."),
            );
        }
        rel
    }
}

/// The SQL function `kalam.undelete`: inserts the last deleted row with a primary key again.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn kalam_undelete(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the function is declared STRICT with a first argument of type regclass and a variadic rest.
    unsafe {
        let relation = pg_sys::Oid::from(pgrx::fcinfo::pg_getarg_datum_raw(call, 0).value() as u32);
        let rel = open_readable(relation);
        let key = wanted_key(rel, call);
        let mut found = Found { context: pg_sys::CurrentMemoryContext, row: None };
        kept_rows(rel, &mut |kept| found.note(rel, &key, kept));
        let Some(mut row) = found.row else {
            raise(
                SqlError::no_data(format!("table \"{}\" has no deleted row with this key", relation_name(rel)))
                    .with_hint("Rows are kept as long as \"kalam.deleted_retention\" says; kalam.history shows them."),
            );
        };
        insert(rel, &mut row);
        let result = to_jsonb(rel, &mut row);
        pg_sys::relation_close(rel, LOCK);
        result
    }
}

/// The newest row with the key, so far.
struct Found {
    context: pg_sys::MemoryContext,
    row: Option<Restored>,
}

impl Found {
    unsafe fn note(&mut self, rel: pg_sys::Relation, key: &[KeyColumn], kept: KeptRow) {
        let row = kept.row;
        // SAFETY: the values belong to the relation's columns; the copy lives in the context of the call.
        unsafe {
            if !key.iter().all(|column| column.matches(&row)) {
                return;
            }
            let old = pg_sys::MemoryContextSwitchTo(self.context);
            let attributes = compat::attributes((*rel).rd_att);
            let values = row.values.iter().zip(&row.nulls).enumerate().map(|(place, (value, null))| {
                let form = &*attributes.add(place);
                if *null { *value } else { raw::datumCopy(*value, form.attbyval, i32::from(form.attlen)) }
            });
            self.row = Some(Restored { values: values.collect(), nulls: row.nulls.clone() });
            pg_sys::MemoryContextSwitchTo(old);
        }
    }
}

/// A column of the primary key and the value that is looked for.
struct KeyColumn {
    place: usize,
    value: pg_sys::Datum,
    equal: *mut pg_sys::FmgrInfo,
    collation: pg_sys::Oid,
}

impl KeyColumn {
    unsafe fn matches(&self, row: &Restored) -> bool {
        // SAFETY: both values have the column's type, of which this is the equality.
        !row.nulls[self.place]
            && unsafe { pg_sys::FunctionCall2Coll(self.equal, self.collation, row.values[self.place], self.value).value() != 0 }
    }
}

/// The key that the call names, in the types of the primary key's columns.
unsafe fn wanted_key(rel: pg_sys::Relation, call: pg_sys::FunctionCallInfo) -> Vec<KeyColumn> {
    // SAFETY: the relation is open; the call's arguments are as many as it says and none is NULL.
    unsafe {
        let index = pg_sys::RelationGetPrimaryKeyIndex(
            rel,
            #[cfg(feature = "pg18")]
            false,
        );
        if index == pg_sys::InvalidOid {
            raise(
                SqlError::prerequisite(format!("table \"{}\" has no primary key", relation_name(rel)))
                    .with_hint("Insert the row that kalam.history shows."),
            );
        }
        let index = pg_sys::index_open(index, LOCK);
        let form = &*(*index).rd_index;
        let columns = std::slice::from_raw_parts(form.indkey.values.as_ptr(), form.indnkeyatts as usize).to_vec();
        pg_sys::index_close(index, LOCK);
        let given = (*call).nargs as usize - 1;
        // In a user table the key is the caller's own, unless the caller sees everybody's rows.
        let mut columns = columns;
        if given < columns.len() && gate::user_for_function(rel).is_some() {
            let user = gate::user_column(rel);
            columns.retain(|column| i32::from(*column) != user);
        }
        if given != columns.len() || pg_sys::get_fn_expr_variadic((*call).flinfo) {
            raise(
                SqlError::invalid_parameter(format!(
                    "the primary key of table \"{}\" has {} columns",
                    relation_name(rel),
                    columns.len()
                ))
                .with_detail(format!("The call gives {given} values."))
                .with_hint("Give one value for each column of the key, in its order."),
            );
        }
        (0..given).map(|number| key_column(rel, columns[number] as usize - 1, call, number + 1)).collect()
    }
}

unsafe fn key_column(rel: pg_sys::Relation, place: usize, call: pg_sys::FunctionCallInfo, argument: usize) -> KeyColumn {
    let (mut output, mut input, mut parameter, mut is_varlena) =
        (pg_sys::InvalidOid, pg_sys::InvalidOid, pg_sys::InvalidOid, false);
    // SAFETY: the column is one of the open relation; the argument has the type that its expression says.
    unsafe {
        let form = &*compat::attributes((*rel).rd_att).add(place);
        let given = pgrx::fcinfo::pg_getarg_datum_raw(call, argument);
        let given_type = pg_sys::get_fn_expr_argtype((*call).flinfo, argument as i32);
        let value = if given_type == form.atttypid {
            given
        } else {
            let text = if given_type == pg_sys::UNKNOWNOID {
                given.cast_mut_ptr()
            } else {
                pg_sys::getTypeOutputInfo(given_type, &mut output, &mut is_varlena);
                pg_sys::OidOutputFunctionCall(output, given)
            };
            pg_sys::getTypeInputInfo(form.atttypid, &mut input, &mut parameter);
            pg_sys::OidInputFunctionCall(input, text, parameter, form.atttypmod)
        };
        let cache = pg_sys::lookup_type_cache(form.atttypid, pg_sys::TYPECACHE_EQ_OPR_FINFO as i32);
        KeyColumn { place, value, equal: &raw mut (*cache).eq_opr_finfo, collation: form.attcollation }
    }
}

/// Inserts a row by an ordinary statement: with the caller's rights, and all that belongs to an INSERT.
unsafe fn insert(rel: pg_sys::Relation, row: &mut Restored) {
    let (mut names, mut types, mut values, mut nulls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // SAFETY: names are copied out of the open relation; SPI gets arrays of one length.
    unsafe {
        let descriptor = (*rel).rd_att;
        for place in 0..row.values.len() {
            let form = &*compat::attributes(descriptor).add(place);
            if form.attisdropped || form.attgenerated != 0 {
                continue;
            }
            names.push(text(pg_sys::quote_identifier(form.attname.data.as_ptr())));
            types.push(form.atttypid);
            values.push(row.values[place]);
            nulls.push(if row.nulls[place] { b'n' } else { b' ' } as std::ffi::c_char);
        }
        let schema = pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace);
        let table = text(pg_sys::quote_qualified_identifier(schema, (*(*rel).rd_rel).relname.data.as_ptr()));
        let places: Vec<String> = (1..=names.len()).map(|number| format!("${number}")).collect();
        let statement = if names.is_empty() {
            format!("INSERT INTO {table} DEFAULT VALUES")
        } else {
            format!("INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE VALUES ({})", names.join(", "), places.join(", "))
        };
        let statement = CString::new(statement).expect("names of Postgres have no zero byte");
        pg_sys::SPI_connect();
        let count = names.len() as i32;
        pg_sys::SPI_execute_with_args(
            statement.as_ptr(),
            count,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            false,
            0,
        );
        pg_sys::SPI_finish();
    }
}

unsafe fn text(name: *const std::ffi::c_char) -> String {
    // SAFETY: Postgres returns a terminated string.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
