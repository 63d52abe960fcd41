//! Owns the line pointer: 32 bits that say where a version lies, with the bits of Postgres' `ItemIdData`.

/// What a line pointer stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LineState {
    /// Nothing; free for reuse.
    Unused = 0,
    /// A stored version.
    Normal = 1,
    /// The head of a chain whose first version is gone: names another line pointer.
    Redirect = 2,
    /// A version that is gone while indexes may still point here.
    Dead = 3,
}

/// `offset:15 | state:2 | length:15`, from the lowest bit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LinePointer(u32);

impl LinePointer {
    /// Free for reuse.
    pub const UNUSED: LinePointer = LinePointer(0);
    /// A removed version that indexes may still name.
    pub const DEAD: LinePointer = LinePointer((LineState::Dead as u32) << 15);

    /// A pointer to a version; both numbers are below 2^15.
    #[inline]
    pub const fn normal(offset: usize, len: usize) -> LinePointer {
        LinePointer(offset as u32 & 0x7fff | (LineState::Normal as u32) << 15 | (len as u32) << 17)
    }

    /// A pointer to another line pointer.
    #[inline]
    pub const fn redirected(to: u16) -> LinePointer {
        LinePointer(to as u32 & 0x7fff | (LineState::Redirect as u32) << 15)
    }

    /// The pointer with these stored bits.
    #[inline]
    pub const fn from_raw(raw: u32) -> LinePointer {
        LinePointer(raw)
    }

    /// The stored bits.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// What it stands for.
    #[inline]
    pub const fn flags(self) -> LineState {
        match (self.0 >> 15) & 3 {
            0 => LineState::Unused,
            1 => LineState::Normal,
            2 => LineState::Redirect,
            _ => LineState::Dead,
        }
    }

    /// Whether a version is stored.
    #[inline]
    pub const fn is_normal(self) -> bool {
        (self.0 >> 15) & 3 == LineState::Normal as u32
    }

    /// Whether it names another line pointer.
    #[inline]
    pub const fn is_redirect(self) -> bool {
        (self.0 >> 15) & 3 == LineState::Redirect as u32
    }

    /// Whether its version is gone and VACUUM has to free it.
    #[inline]
    pub const fn is_dead(self) -> bool {
        (self.0 >> 15) & 3 == LineState::Dead as u32
    }

    /// Whether it is free.
    #[inline]
    pub const fn is_unused(self) -> bool {
        (self.0 >> 15) & 3 == LineState::Unused as u32
    }

    /// The line pointer that a redirect names.
    #[inline]
    pub const fn redirect(self) -> u16 {
        (self.0 & 0x7fff) as u16
    }

    /// Where the version starts in the page.
    #[inline]
    pub const fn offset(self) -> usize {
        (self.0 & 0x7fff) as usize
    }

    /// Length of the version, prefix included, padding not.
    #[inline]
    pub const fn len(self) -> usize {
        (self.0 >> 17) as usize
    }

    /// Whether no bytes are stored.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Where the infomask of a normal pointer's version stands in the page: the place of its hint bits.
    #[inline]
    pub const fn infomask_position(self) -> usize {
        self.offset() + super::version::AT_INFOMASK
    }
}

impl std::fmt::Debug for LinePointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.flags() {
            LineState::Unused => f.write_str("Unused"),
            LineState::Normal => write!(f, "Normal({}+{})", self.offset(), self.len()),
            LineState::Redirect => write!(f, "Redirect({})", self.redirect()),
            LineState::Dead => f.write_str("Dead"),
        }
    }
}
