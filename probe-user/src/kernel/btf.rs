//! A reader of BTF, the kernel's description of its own types
//! (`Documentation/bpf/btf.rst`).
//!
//! It answers four questions: where a field lies, what a tracepoint's arguments
//! are called, what an enumeration's values are called, whether a function is
//! there. It owns no file descriptor and takes bytes.

use std::{collections::HashMap, path::Path};

/// Where the running kernel shows its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const HEADER: usize = 24;
const MAGIC: u16 = 0xeb9f;

mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// What is wrong with a BTF file.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// It cannot be read.
    #[error("cannot read {path}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not BTF, or cut off.
    #[error("{path} is not valid BTF: {what}")]
    Malformed {
        /// The file.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// A field of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Offset from the start of the structure in bits.
    pub bit_offset: u32,
    /// Width in bits if it is a bit field.
    pub bits: Option<u32>,
    /// Size of its type in bytes; of the containing unit for a bit field.
    pub size: u32,
}

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    info: u32,
    /// Size or type number, by kind.
    size: u32,
    /// Where what follows the three words begins in the type section.
    rest: usize,
}

impl Type {
    fn kind(self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn len(self) -> usize {
        (self.info & 0xffff) as usize
    }

    fn kind_flag(self) -> bool {
        self.info >> 31 != 0
    }
}

/// Parsed BTF.
pub struct Btf {
    data: Vec<u8>,
    types_at: usize,
    strings_at: usize,
    strings_len: usize,
    types: Vec<Type>,
    /// First numbers of a type and of a string here; not 0 for a module, whose
    /// numbers go on where the kernel's end.
    first_type: u32,
    first_string: u32,
    /// Types by name; several kinds can share one.
    by_name: HashMap<Vec<u8>, Vec<u32>>,
}

impl std::fmt::Debug for Btf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Btf")
            .field("types", &self.types.len())
            .finish_non_exhaustive()
    }
}

impl Btf {
    /// The running kernel's.
    ///
    /// # Errors
    ///
    /// The file is missing, unreadable or malformed.
    pub fn from_sys_fs() -> Result<Self, BtfError> {
        Self::from_file(Path::new(VMLINUX), None)
    }

    /// Reads a file; that of a module builds on `base`.
    ///
    /// # Errors
    ///
    /// As [`Self::from_sys_fs`].
    pub fn from_file(path: &Path, base: Option<&Self>) -> Result<Self, BtfError> {
        let name = path.display().to_string();
        let data = std::fs::read(path).map_err(|source| BtfError::Read {
            path: name.clone(),
            source,
        })?;
        Self::parse(data, base).map_err(|what| BtfError::Malformed { path: name, what })
    }

    /// Parses BTF from memory.
    ///
    /// # Errors
    ///
    /// Says what is malformed.
    pub fn parse(data: Vec<u8>, base: Option<&Self>) -> Result<Self, &'static str> {
        let header = data.get(..HEADER).ok_or("shorter than its header")?;
        if u16::from_ne_bytes([header[0], header[1]]) != MAGIC {
            return Err("wrong magic number or byte order");
        }
        let word = |n: usize| {
            let at = n * 4;
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
                as usize
        };
        let (header_len, types_off, types_len, strings_off, strings_len) =
            (word(1), word(2), word(3), word(4), word(5));
        let types_at = header_len + types_off;
        let strings_at = header_len + strings_off;
        if types_at + types_len > data.len() || strings_at + strings_len > data.len() {
            return Err("a section reaches beyond the end");
        }
        let mut btf = Self {
            data,
            types_at,
            strings_at,
            strings_len,
            types: Vec::new(),
            first_type: base.map_or(1, |base| base.first_type + base.types.len() as u32),
            first_string: base.map_or(0, |base| base.strings_len as u32),
            by_name: HashMap::new(),
        };
        let mut at = 0;
        while at < types_len {
            let ty = btf.type_at(at).ok_or("a type is cut off")?;
            let rest = match ty.kind() {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * ty.len(),
                kind::ENUM | kind::FUNC_PROTO => 8 * ty.len(),
                0 | 20.. => return Err("a type of unknown kind"),
                _ => 0,
            };
            at = ty.rest + rest;
            if at > types_len {
                return Err("a type is cut off");
            }
            let id = btf.first_type + btf.types.len() as u32;
            if ty.name != 0 {
                let name = btf.name(ty.name).to_vec();
                btf.by_name.entry(name).or_default().push(id);
            }
            btf.types.push(ty);
        }
        Ok(btf)
    }

    fn word(&self, at: usize) -> Option<u32> {
        let at = self.types_at + at;
        let bytes = self.data.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        Some(Type {
            name: self.word(at)?,
            info: self.word(at + 4)?,
            size: self.word(at + 8)?,
            rest: at + 12,
        })
    }

    /// The string at an offset; empty for one of the base or out of bounds.
    fn name(&self, offset: u32) -> &[u8] {
        let Some(offset) = offset.checked_sub(self.first_string) else {
            return &[];
        };
        let strings = &self.data[self.strings_at..self.strings_at + self.strings_len];
        let rest = strings.get(offset as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn text(&self, offset: u32) -> String {
        String::from_utf8_lossy(self.name(offset)).into_owned()
    }

    fn get(&self, id: u32) -> Option<Type> {
        self.types
            .get(id.checked_sub(self.first_type)? as usize)
            .copied()
    }

    fn named(&self, name: &str, kinds: &[u32]) -> Option<Type> {
        let ids = self.by_name.get(name.as_bytes())?;
        ids.iter()
            .filter_map(|&id| self.get(id))
            .find(|ty| kinds.contains(&ty.kind()))
    }

    /// The type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<Type> {
        // A chain longer than this is a loop in a malformed file.
        for _ in 0..32 {
            let ty = self.get(id)?;
            match ty.kind() {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size;
                }
                _ => return Some(ty),
            }
        }
        None
    }

    fn size_of(&self, ty: Type) -> Option<u32> {
        match ty.kind() {
            kind::PTR => Some(8),
            kind::ARRAY => {
                let element = self.resolve(self.word(ty.rest)?)?;
                let count = self.word(ty.rest + 8)?;
                if element.kind() == kind::ARRAY {
                    return None;
                }
                self.size_of(element)?.checked_mul(count)
            }
            _ => Some(ty.size),
        }
    }

    /// Where a field lies: `struct.member.member`. `None` if there is no such
    /// structure or member.
    pub fn field(&self, path: &str) -> Option<Field> {
        let mut names = path.split('.');
        let mut ty = self.named(names.next()?, &[kind::STRUCT, kind::UNION])?;
        let mut found = Field {
            bit_offset: 0,
            bits: None,
            size: ty.size,
        };
        for name in names {
            let (member, field) = self.member(ty, name, 0)?;
            found = Field {
                bit_offset: found.bit_offset + field.bit_offset,
                ..field
            };
            ty = member;
        }
        Some(found)
    }

    fn member(&self, ty: Type, name: &str, depth: u32) -> Option<(Type, Field)> {
        if !matches!(ty.kind(), kind::STRUCT | kind::UNION) || depth > 16 {
            return None;
        }
        (0..ty.len()).find_map(|n| {
            let at = ty.rest + 12 * n;
            let (member_name, id, offset) =
                (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
            let (bit_offset, bits) = match ty.kind_flag() {
                true if offset >> 24 != 0 => (offset & 0xff_ffff, Some(offset >> 24)),
                true => (offset & 0xff_ffff, None),
                false => (offset, None),
            };
            let member = self.resolve(id)?;
            if self.name(member_name) == name.as_bytes() {
                let size = self.size_of(member)?;
                return Some((
                    member,
                    Field {
                        bit_offset,
                        bits,
                        size,
                    },
                ));
            }
            if member_name != 0 {
                return None;
            }
            let (inner, field) = self.member(member, name, depth + 1)?;
            Some((
                inner,
                Field {
                    bit_offset: bit_offset + field.bit_offset,
                    ..field
                },
            ))
        })
    }

    /// Names of a tracepoint's arguments; `None` if there is no such tracepoint.
    ///
    /// The typedef `btf_trace_NAME` says that a program can attach and how many
    /// arguments there are; their names are those of `__traceiter_NAME`.
    pub fn tracepoint_args(&self, name: &str) -> Option<Vec<String>> {
        let typedef = self.named(&format!("btf_trace_{name}"), &[kind::TYPEDEF])?;
        let pointer = self.resolve(typedef.size)?;
        let count = self.resolve(pointer.size)?.len();
        let names = self
            .named(&format!("__traceiter_{name}"), &[kind::FUNC])
            .and_then(|func| self.resolve(func.size))
            .filter(|proto| proto.len() == count);
        // The first is the probe's own data.
        Some(
            (1..count)
                .map(|n| {
                    let name = names.and_then(|proto| self.word(proto.rest + 8 * n));
                    let name = name.map_or_else(String::new, |name| self.text(name));
                    name.trim_end_matches("__nullable").to_owned()
                })
                .collect(),
        )
    }

    /// The number of a struct.
    pub fn structure(&self, name: &str) -> Option<u32> {
        self.number(name, kind::STRUCT)
    }

    fn number(&self, name: &str, kind: u32) -> Option<u32> {
        let ids = self.by_name.get(name.as_bytes())?;
        let is_one = |id: &u32| self.get(*id).is_some_and(|ty| ty.kind() == kind);
        ids.iter().copied().find(is_one)
    }

    /// Whether there is such a function.
    pub fn has_func(&self, name: &str) -> bool {
        self.func(name).is_some()
    }

    /// The number of a function.
    pub fn func(&self, name: &str) -> Option<u32> {
        self.number(name, kind::FUNC)
    }

    /// Whether programs can attach to a tracepoint of that name.
    pub fn has_tracepoint(&self, name: &str) -> bool {
        self.named(&format!("btf_trace_{name}"), &[kind::TYPEDEF])
            .is_some()
    }

    /// Whether there is a typedef of that name.
    pub fn has_typedef(&self, name: &str) -> bool {
        self.named(name, &[kind::TYPEDEF]).is_some()
    }

    /// Names and values of an enumeration; `None` if there is no such type.
    pub fn enum_variants(&self, name: &str) -> Option<Vec<(String, u32)>> {
        let ty = self.named(name, &[kind::ENUM])?;
        (0..ty.len())
            .map(|n| {
                let at = ty.rest + 8 * n;
                Some((self.text(self.word(at)?), self.word(at + 4)?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
