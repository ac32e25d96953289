//! What a shielded process 1 hides from the programs.

use crate::{
    kernel::shield::{HiddenEvents, Shield},
    model::{self, Program},
};

/// The cause of what is lost so.
pub const CAUSE: &str = "shielded";

/// Whether process 1 is shielded, and the count of what that hides.
#[derive(Debug)]
pub struct ShieldWatch {
    hidden: Option<HiddenEvents>,
    told: model::Shield,
}

impl ShieldWatch {
    /// Looks, counts from now on where process 1 is shielded, and says once what it
    /// found. Where it is not shielded nothing is opened.
    pub fn start() -> Self {
        let state = |state: &str, note: String| model::Shield {
            state: state.to_owned(),
            note,
        };
        let (hidden, told) = match Shield::of_process_1() {
            Shield::Absent => (None, state("absent", String::new())),
            Shield::Unknown(why) => {
                tracing::debug!("whether process 1 is shielded is not known: {why}");
                (None, state("unknown", why))
            }
            Shield::Present => match HiddenEvents::start() {
                Ok(hidden) => {
                    tracing::info!(
                        "process 1 is shielded: no program sees what interrupts do on its time; \
                         lost events have the cause \"{CAUSE}\""
                    );
                    (Some(hidden), state("counted", String::new()))
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!(
                        "process 1 is shielded: no program sees what interrupts do on its time, \
                         and it is not counted: {why}"
                    );
                    (None, state("not_counted", why))
                }
            },
        };
        Self { hidden, told }
    }

    /// What to tell of it.
    pub fn told(&self) -> &model::Shield {
        &self.told
    }

    /// Hidden events by hook, where a program is attached that missed them.
    pub fn lost(&mut self, programs: &[Program]) -> Vec<(&'static str, u64)> {
        let Some(hidden) = &mut self.hidden else {
            return Vec::new();
        };
        let is_attached = |hook: &str| {
            let mut attached = programs.iter().filter(|program| program.attached);
            attached.any(|program| program.hook.strip_prefix("tp_btf/") == Some(hook))
        };
        let mut lost = hidden.read();
        lost.retain(|(hook, _)| is_attached(hook));
        lost
    }
}
