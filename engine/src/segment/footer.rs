//! What a segment's footer says beyond Parquet's own: the table, the stubs, and the summary.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parquet::file::metadata::{KeyValue, ParquetMetaData};
use serde::{Deserialize, Serialize};

use super::checked::{TAIL, tail_entry};
use super::stub::{Fields, put_varint};
use super::{BlockStub, ColumnSummary, SEGMENT_FORMAT, TableSchema, ValueStub};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::StorageId;
use crate::page::read_u32;

const FORMAT: &str = "kalamdb.format";
const IDENTITY: &str = "kalamdb.segment";
const SCHEMA: &str = "kalamdb.schema";
const STUBS: &str = "kalamdb.stubs";
const SUMS: &str = "kalamdb.checksums";

/// Which segment it is, and what the manifest needs besides the stubs.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Identity {
    pub storage: StorageId,
    pub segment: u64,
    pub rows: u64,
    pub hot_bytes: u64,
    pub min_tid: u64,
    pub max_tid: u64,
    pub columns: Vec<ColumnSummary>,
    /// The columns of which some row has its value in overflow pages.
    pub large_columns: Vec<i16>,
    /// Rows of a row group that are decoded together; pages end with them.
    pub chunk_rows: usize,
}

/// What is before the footer.
pub struct Data<'a> {
    /// Where it ends.
    pub length: u64,
    /// The checksums of its blocks.
    pub sums: &'a [u32],
}

/// The entries of the footer.
///
/// # Errors
/// `Internal` when something cannot be written as JSON, which nothing is known to cause.
pub fn entries(
    identity: &Identity,
    schema: &TableSchema,
    stubs: (&[BlockStub], &[ValueStub]),
    data: Data<'_>,
) -> Result<Vec<KeyValue>> {
    let json = |text: serde_json::Result<String>| {
        text.map_err(|error| Error::internal("a segment's footer could not be written").with_source(error))
    };
    let (blocks, values) = stubs;
    let mut stubs = Vec::with_capacity(40 * blocks.len());
    put_varint(&mut stubs, blocks.len() as u64);
    blocks.iter().for_each(|block| block.encode(&mut stubs));
    put_varint(&mut stubs, values.len() as u64);
    values.iter().for_each(|value| value.encode(&mut stubs));
    let entries = [
        (FORMAT, SEGMENT_FORMAT.to_string()),
        (IDENTITY, json(serde_json::to_string(identity))?),
        (SCHEMA, json(serde_json::to_string(schema))?),
        (STUBS, STANDARD.encode(stubs)),
        (SUMS, STANDARD.encode(data.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>())),
        // The last one: it is looked for from the end.
        (TAIL, tail_entry(data.length)),
    ];
    Ok(entries.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect())
}

/// The footer as it was read.
pub struct Footer<'a>(&'a [KeyValue]);

impl<'a> Footer<'a> {
    /// The footer of a file.
    pub fn of(metadata: &'a ParquetMetaData) -> Footer<'a> {
        Footer(metadata.file_metadata().key_value_metadata().map_or(&[], Vec::as_slice))
    }

    fn text(&self, key: &str) -> Result<&str> {
        let found = self.0.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref());
        found.ok_or_else(|| Error::corrupt("the file is no segment").with_detail(format!("Its footer has no \"{key}\".")))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.text(key)?)
            .map_err(|error| Error::corrupt(format!("the segment's footer has a wrong \"{key}\"")).with_source(error))
    }

    /// Refuses what a newer version wrote.
    ///
    /// # Errors
    /// `Corrupt` for what is no segment, `Unsupported` for one of another format.
    pub fn check_format(&self) -> Result<()> {
        let format = self.text(FORMAT)?;
        if format == SEGMENT_FORMAT.to_string() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, "the segment was written by another version of kalamdb")
            .with_detail(format!("It has format {format}; this version of kalamdb reads format {SEGMENT_FORMAT}."))
            .with_hint("Install the version of kalamdb that wrote it, or a later one."))
    }

    /// Which segment it is.
    ///
    /// # Errors
    /// `Corrupt` when the footer does not say.
    pub fn identity(&self) -> Result<Identity> {
        self.json(IDENTITY)
    }

    /// The columns of its table.
    ///
    /// # Errors
    /// As [`Footer::identity`].
    pub fn schema(&self) -> Result<TableSchema> {
        self.json(SCHEMA)
    }

    /// The checksums of its data.
    ///
    /// # Errors
    /// As [`Footer::identity`].
    pub fn sums(&self) -> Result<Vec<u32>> {
        let bytes = decoded(self.text(SUMS)?)?;
        Ok(bytes.chunks_exact(4).map(|word| read_u32(word, 0)).collect())
    }

    /// Its stubs.
    ///
    /// # Errors
    /// As [`Footer::identity`].
    pub fn stubs(&self) -> Result<(Vec<BlockStub>, Vec<ValueStub>)> {
        let bytes = decoded(self.text(STUBS)?)?;
        let mut fields = Fields(&bytes);
        let blocks = (0..fields.count()?).map(|_| BlockStub::take(&mut fields)).collect::<Result<Vec<_>>>()?;
        let values = (0..fields.count()?).map(|_| ValueStub::take(&mut fields)).collect::<Result<Vec<_>>>()?;
        fields.end()?;
        Ok((blocks, values))
    }
}

fn decoded(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|error| Error::corrupt("the segment's footer cannot be decoded").with_source(error))
}
