//! The replication slot that makes the server keep the log the store still needs.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use kalamdb_engine::ids::Lsn;
use pgrx::pg_sys;

use crate::error::{SqlError, catching_all};
use crate::ffi::compat;

const NAME: &CStr = c"kalamdb";

/// How long a slot may still belong to a worker that is leaving.
const RELEASE_LIMIT: Duration = Duration::from_secs(10);

/// The acquired slot; Postgres releases it when the process ends.
pub struct Slot {
    slot: *mut pg_sys::ReplicationSlot,
}

impl Slot {
    /// Acquires the slot, creating it if there is none, or if the server gave up the log it held.
    ///
    /// # Errors
    /// 53400 when no slot is free, 55000 when somebody else uses the name, 55006 when another process holds it.
    pub fn acquire() -> Result<Slot, SqlError> {
        if exists() {
            let slot = acquire_existing()?;
            if !slot.is_invalidated() {
                return Ok(slot);
            }
            // Whether the log is really gone shows the replay that follows; the old slot can hold nothing any more.
            catching_all(|| {
                // SAFETY: the slot is ours; it is released before it is dropped.
                unsafe {
                    pg_sys::ReplicationSlotRelease();
                    pg_sys::ReplicationSlotDrop(NAME.as_ptr(), true);
                }
            })?;
        }
        create()
    }

    fn mine() -> Slot {
        // SAFETY: set by the acquisition that just succeeded.
        Slot { slot: unsafe { pg_sys::MyReplicationSlot } }
    }

    fn is_invalidated(&self) -> bool {
        // SAFETY: the fields of an acquired slot are changed by its owner only.
        compat::slot_is_invalidated(unsafe { &*self.slot })
    }

    /// From where the server keeps its log.
    pub fn position(&self) -> Lsn {
        // SAFETY: as above.
        Lsn(unsafe { (*self.slot).data.restart_lsn })
    }

    /// Whether a process waits for this one to give the slot up: the checkpointer, when the log that the slot holds gets too long.
    pub fn is_wanted(&self) -> bool {
        // SAFETY: the slot lies in shared memory.
        unsafe { compat::has_waiters(&raw mut (*self.slot).active_cv) }
    }

    /// Lets the server remove the log before a position, once that is on disk.
    pub fn advance(&self, to: Lsn) {
        if to <= self.position() {
            return;
        }
        // SAFETY: the slot is acquired; its lock is held for one store.
        unsafe {
            let slot = self.slot;
            compat::with_spinlock(&raw mut (*slot).mutex, || (*slot).data.restart_lsn = to.0);
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotSave();
            pg_sys::ReplicationSlotsComputeRequiredLSN();
            // A checkpointer that waits to give the slot up looks again.
            pg_sys::ConditionVariableBroadcast(&raw mut (*slot).active_cv);
        }
    }
}

fn exists() -> bool {
    // SAFETY: searches shared memory under Postgres' own lock.
    unsafe { !pg_sys::SearchNamedReplicationSlot(NAME.as_ptr(), true).is_null() }
}

fn acquire_existing() -> Result<Slot, SqlError> {
    let begun = Instant::now();
    loop {
        match catching_all(|| compat::acquire_slot(NAME)) {
            Ok(()) => break,
            Err(error) if error.is_object_in_use() && begun.elapsed() < RELEASE_LIMIT => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                return Err(error.with_hint("The slot \"kalamdb\" belongs to the KalamDB engine; end the process that uses it."));
            }
        }
    }
    let slot = Slot::mine();
    // SAFETY: the fields of an acquired slot are changed by its owner only.
    if u32::from(unsafe { (*slot.slot).data.database }) != 0 {
        // SAFETY: acquired above.
        unsafe { pg_sys::ReplicationSlotRelease() };
        return Err(SqlError::prerequisite("the replication slot \"kalamdb\" is a logical slot")
            .with_detail("The KalamDB engine needs a physical slot of that name.")
            .with_hint("Drop it with pg_drop_replication_slot('kalamdb')."));
    }
    Ok(slot)
}

fn create() -> Result<Slot, SqlError> {
    catching_all(|| {
        compat::create_physical_slot(NAME);
        // SAFETY: the slot is acquired by its creation.
        unsafe {
            pg_sys::ReplicationSlotReserveWal();
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotSave();
        }
    })
    .map_err(|error| {
        error
            .with_detail(
                "The KalamDB engine needs one replication slot, for the write-ahead log that it has not made durable yet.",
            )
            .with_hint("Drop a slot that is not needed, or raise \"max_replication_slots\" and restart the server.")
    })?;
    Ok(Slot::mine())
}
