//! Refuses publications of our tables, whose changes logical decoding does not see.
//!
//! An event trigger looks after each statement that can bring a table and a publication together. Naming a table is an error. A
//! publication of all tables or of a schema leaves our tables out, as it does unlogged ones, but says so: to whoever makes or
//! changes the publication, and once to a session that makes tables.

use std::cell::RefCell;
use std::collections::HashSet;

use kalamdb_engine::{Error, ErrorKind};
use pgrx::prelude::*;
use pgrx::spi::{SpiClient, SpiError};

use crate::error::{OrRaise, SqlError, raise};
use crate::ffi::function::version_1;

/// What to do about a table that is published in vain.
const HINT: &str =
    "Changes of KalamDB tables are not decoded. Leave the table out of the publication, or let it be a heap table.";

/// Tables that a warning names.
const NAMED_MAX: usize = 5;

/// Our tables that the running statement made part of a publication, with the table that the publication knows: itself or the
/// partitioned table it belongs to.
const PUBLISHED: &str = "
WITH ours AS (
    SELECT c.oid FROM pg_class c
    JOIN pg_depend d ON d.classid = 'pg_am'::regclass AND d.objid = c.relam AND d.refclassid = 'pg_extension'::regclass
    JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'kalamdb'
    WHERE c.relkind = 'r' AND c.relpersistence = 'p'
), known AS (
    SELECT o.oid, v.via, t.relnamespace
    FROM ours o CROSS JOIN LATERAL (SELECT o.oid UNION SELECT relid FROM pg_partition_ancestors(o.oid)) v (via)
    JOIN pg_class t ON t.oid = v.via
), published AS (
    SELECT k.oid, k.via, r.prpubid AS publication, r.oid AS membership, true AS named
    FROM known k JOIN pg_publication_rel r ON r.prrelid = k.via
    UNION ALL
    SELECT k.oid, k.via, n.pnpubid, n.oid, false FROM known k JOIN pg_publication_namespace n ON n.pnnspid = k.relnamespace
    UNION ALL
    SELECT k.oid, k.via, p.oid, p.oid, false FROM known k JOIN pg_publication p ON p.puballtables
)
SELECT u.named, p.pubname::text, u.oid::regclass::text, u.via::regclass::text
FROM published u JOIN pg_publication p ON p.oid = u.publication
WHERE EXISTS (
    SELECT FROM pg_event_trigger_ddl_commands() d
    WHERE d.classid = 'pg_class'::regclass AND d.objid IN (u.oid, u.via)
       OR d.classid = 'pg_publication'::regclass AND d.objid = u.publication
       OR d.classid IN ('pg_publication_rel'::regclass, 'pg_publication_namespace'::regclass) AND d.objid = u.membership
)
ORDER BY u.named DESC, p.pubname, u.oid, u.via";

thread_local! {
    /// Publications that this session knows to leave out its tables: a warning with each new table would be a nuisance.
    static TOLD: RefCell<HashSet<String>> = RefCell::new(HashSet::new());
}

/// One of our tables in a publication.
struct Published {
    named: bool,
    publication: String,
    table: String,
    via: String,
}

version_1!(pg_finfo_kalam_check_publications);

/// The function of the event trigger.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn kalam_check_publications(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: Postgres passes the call's own data; that of an event trigger names the statement.
    let statement = unsafe {
        let context = (*call).context.cast::<pg_sys::EventTriggerData>();
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
            raise(Error::new(ErrorKind::Unsupported, "kalam.check_publications() is not called by an event trigger"));
        }
        (*context).parsetree
    };
    // SAFETY: the tree is alive while its statement ends.
    if unsafe { is_harmless(statement) } {
        return pg_sys::Datum::from(0);
    }
    let published = Spi::connect(find_published).map_err(|error| Error::internal(error.to_string())).or_raise();
    if let Some(first) = published.first().filter(|first| first.named) {
        refuse(first);
    }
    let mut rest = published.as_slice();
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|other| other.publication == first.publication).count();
        let creates_table = !is_about_publications(statement);
        if !creates_table || TOLD.with_borrow_mut(|told| told.insert(first.publication.clone())) {
            warn(&rest[..count]);
        }
        rest = &rest[count..];
    }
    pg_sys::Datum::from(0)
}

/// Whether a statement publishes no table that was not published before.
unsafe fn is_harmless(statement: *mut pg_sys::Node) -> bool {
    use pg_sys::AlterTableType::{AT_AttachPartition, AT_SetAccessMethod, AT_SetLogged};
    // SAFETY: the caller passes a parse tree.
    unsafe {
        if (*statement).type_ != pg_sys::NodeTag::T_AlterTableStmt {
            return false;
        }
        let commands = (*statement.cast::<pg_sys::AlterTableStmt>()).cmds;
        let count = if commands.is_null() { 0 } else { (*commands).length as usize };
        (0..count).all(|place| {
            let command = (*(*commands).elements.add(place)).ptr_value.cast::<pg_sys::AlterTableCmd>();
            ![AT_AttachPartition, AT_SetAccessMethod, AT_SetLogged].contains(&(*command).subtype)
        })
    }
}

fn is_about_publications(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller passes a parse tree.
    let tag = unsafe { (*statement).type_ };
    matches!(tag, pg_sys::NodeTag::T_CreatePublicationStmt | pg_sys::NodeTag::T_AlterPublicationStmt)
}

fn find_published(client: &SpiClient<'_>) -> Result<Vec<Published>, SpiError> {
    if client.select("SELECT FROM pg_publication", Some(1), &[])?.is_empty() {
        return Ok(Vec::new());
    }
    let mut published: Vec<Published> = Vec::new();
    for row in client.select(PUBLISHED, None, &[])? {
        published.push(Published {
            named: row.get(1)?.unwrap_or_default(),
            publication: row.get(2)?.unwrap_or_default(),
            table: row.get(3)?.unwrap_or_default(),
            via: row.get(4)?.unwrap_or_default(),
        });
    }
    Ok(published)
}

fn refuse(found: &Published) -> ! {
    let Published { publication, table, via, .. } = found;
    let detail = if table == via {
        format!("Publication \"{publication}\" names the table.")
    } else {
        format!("Publication \"{publication}\" names the partitioned table {via}, of which it is a partition.")
    };
    raise(Error::new(ErrorKind::Unsupported, format!("cannot publish KalamDB table {table}")).with_detail(detail).with_hint(HINT))
}

/// Tells of the tables that one publication covers without naming them.
fn warn(tables: &[Published]) {
    let mut names: Vec<&str> = tables.iter().map(|published| published.table.as_str()).collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut detail = format!("Changes of {}", names[..names.len() - more].join(", "));
    if more > 0 {
        detail.push_str(&format!(" and {more} more"));
    }
    detail.push_str(" are not sent.");
    SqlError::warning(format!("publication \"{}\" leaves out KalamDB tables", tables[0].publication))
        .with_detail(detail)
        .with_hint(HINT)
        .log(PgLogLevel::WARNING);
}
