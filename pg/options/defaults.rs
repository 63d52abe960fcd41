//! The settings that hold the defaults of table options.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::pg_sys;

use super::definition;

type Text = GucSetting<Option<CString>>;

static FLUSH_POLICY: Text = Text::new(Some(c"rows:10000,interval:300"));
static FLUSH_ROWS: Text = Text::new(Some(c""));
static FLUSH_INTERVAL: Text = Text::new(Some(c""));
static STORAGE: Text = Text::new(Some(c"local"));
static COMPRESSION: Text = Text::new(Some(c"zstd:5"));
static ROW_GROUP_ROWS: Text = Text::new(Some(c"131072"));
static BLOOM_COLUMNS: Text = Text::new(Some(c""));
static CLUSTER_BY: Text = Text::new(Some(c""));
static DELETED_RETENTION: Text = Text::new(Some(c"7 days"));
static TTL: Text = Text::new(Some(c""));
static MAX_BYTES: Text = Text::new(Some(c""));
static ENCRYPTION_KEY: Text = Text::new(Some(c""));

struct Default {
    option: &'static str,
    setting: &'static CStr,
    value: &'static Text,
    description: &'static CStr,
    check: pg_sys::GucStringCheckHook,
}

/// A check hook says the same as the option's definition.
macro_rules! defaults {
    ($($option:ident, $setting:literal, $value:ident, $description:literal;)*) => {
        $(
            unsafe extern "C-unwind" fn $option(value: *mut *mut c_char, _extra: *mut *mut c_void, _source: pg_sys::GucSource::Type) -> bool {
                // SAFETY: Postgres passes a place with a terminated string or null.
                unsafe { is_valid(stringify!($option), *value) }
            }
        )*
        const DEFAULTS: &[Default] = &[$(Default {
            option: stringify!($option),
            setting: $setting,
            value: &$value,
            description: $description,
            check: Some($option),
        }),*];
    };
}

defaults! {
    flush_policy, c"kalam.flush_policy", FLUSH_POLICY, c"When the rows of a table that sets no policy itself are moved into segments.";
    flush_rows, c"kalam.flush_rows", FLUSH_ROWS, c"Number of changed rows at which a table is flushed, in place of that in kalam.flush_policy.";
    flush_interval, c"kalam.flush_interval", FLUSH_INTERVAL, c"Time after which changed rows are flushed, in place of that in kalam.flush_policy.";
    storage, c"kalam.storage", STORAGE, c"Storage of the segments of tables that name none.";
    compression, c"kalam.compression", COMPRESSION, c"Compression of segments.";
    row_group_rows, c"kalam.row_group_rows", ROW_GROUP_ROWS, c"Rows in a row group of a segment.";
    bloom_columns, c"kalam.bloom_columns", BLOOM_COLUMNS, c"Columns of segments with bloom filters; empty for those of the primary key.";
    cluster_by, c"kalam.cluster_by", CLUSTER_BY, c"Columns that order the rows of a segment.";
    deleted_retention, c"kalam.deleted_retention", DELETED_RETENTION, c"How long deleted rows can be brought back.";
    ttl, c"kalam.ttl", TTL, c"How long rows of a stream table live.";
    max_bytes, c"kalam.max_bytes", MAX_BYTES, c"Size at which the oldest rows of a stream table go.";
    encryption_key, c"kalam.encryption_key", ENCRYPTION_KEY, c"Key that encrypts tables.";
}

/// Whether a default is one; empty stands for none.
///
/// # Safety
/// The value is null or a terminated string.
unsafe fn is_valid(option: &str, value: *const c_char) -> bool {
    if value.is_null() {
        return true;
    }
    // SAFETY: see above.
    let value = unsafe { CStr::from_ptr(value) }.to_string_lossy();
    // Intervals need more of the server than there is when the configuration is read first: those of the file are looked at when used.
    // SAFETY: reads the backend's own state.
    let is_starting = || unsafe { !pg_sys::IsTransactionState() };
    if value.is_empty() || (matches!(option, "deleted_retention" | "ttl" | "flush_interval") && is_starting()) {
        return true;
    }
    if definition::is_unbuilt(option) {
        // SAFETY: as below.
        unsafe { pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(c"The option is not supported yet.".as_ptr()) };
        return false;
    }
    let Some(definition) = definition::DEFINITIONS.iter().find(|definition| definition.name == option) else { return false };
    if definition.normalize(&value).is_ok() {
        return true;
    }
    let valid = CString::new(format!("Valid is {}.", definition.form)).unwrap_or_default();
    // SAFETY: Postgres reads the detail before it leaves the context in which it is allocated here.
    unsafe { pg_sys::GUC_check_errdetail_string = pg_sys::pstrdup(valid.as_ptr()) };
    false
}

/// Defines the settings; called when the library is loaded.
pub fn define() {
    for default in DEFAULTS {
        // SAFETY: the hook only reads the value.
        unsafe {
            GucRegistry::define_string_guc_with_hooks(
                default.setting,
                default.description,
                c"A table may set the option of the same name.",
                default.value,
                GucContext::Suset,
                GucFlags::default(),
                default.check,
                None,
                None,
            );
        }
    }
}

/// The default of an option as it was written; empty if there is none.
pub fn text_of(option: &str) -> String {
    let default = DEFAULTS.iter().find(|default| default.option == option);
    default.and_then(|default| default.value.get()).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The default of an option, in its normal form; empty if there is none.
pub fn of(option: &str) -> String {
    let Some(default) = DEFAULTS.iter().find(|default| default.option == option) else { return String::new() };
    let value = default.value.get().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    if value.is_empty() {
        return value;
    }
    definition::find(option).and_then(|definition| definition.normalize(&value)).unwrap_or_default()
}
