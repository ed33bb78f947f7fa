//! A folder of results: what every repetition has told, and on what machine.
//!
//! ```text
//! meta.json                      the parts that were chosen, and a record of each run
//! raw/EXPERIMENT.PART.K.jsonl    samples and notes of repetition K, as its script printed them
//! raw/EXPERIMENT.PART.K.json     why there are none: skipped or failed
//! log/EXPERIMENT.PART.K          what the script said meanwhile; not needed for a report
//! report.md, *.svg, *.png        made of the above
//! ```
//!
//! Files appear complete or not at all: what is there is done.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, Serialize};

use super::experiment::Part;

/// The most bytes that a repetition's samples may have.
pub const SAMPLES_BYTES_MAX: usize = 16 << 20;

/// One measured figure.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Sample {
    /// The script's name.
    pub experiment: String,
    /// The configuration.
    pub series: String,
    /// A category, or a number on the x axis.
    #[serde(deserialize_with = "text_or_number")]
    pub x: String,
    /// What was measured.
    pub metric: String,
    /// In what unit.
    pub unit: String,
    /// How much.
    pub value: f64,
}

/// A further fact about a run, in words.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The script's name.
    pub experiment: String,
    /// The configuration; empty for all.
    #[serde(default)]
    pub series: String,
    /// The fact.
    pub note: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Sample(Sample),
    Note(Note),
}

fn text_or_number<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match serde_json::Value::deserialize(from)? {
        serde_json::Value::String(text) => Ok(text),
        serde_json::Value::Number(number) => Ok(number.to_string()),
        other => Err(serde::de::Error::custom(format!("x is {other}"))),
    }
}

/// Why a repetition has no samples.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It cannot be had here.
    Skipped(String),
    /// It went wrong.
    Failed(String),
}

/// What `meta.json` has.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Meta {
    /// All parts that were ever chosen, with the repetitions that were wanted.
    pub parts: Vec<Part>,
    /// The runs that have added to the results.
    pub runs: Vec<serde_json::Value>,
}

impl Meta {
    /// Takes in the parts of another run. A part that is known has its new facts; experiments stay
    /// together.
    pub fn add_parts(&mut self, parts: &[Part]) {
        for part in parts {
            let same = |p: &&mut Part| p.experiment == part.experiment && p.part == part.part;
            if let Some(known) = self.parts.iter_mut().find(same) {
                *known = part.clone();
            } else {
                let behind = self.parts.iter().rposition(|p| p.experiment <= part.experiment);
                self.parts.insert(behind.map_or(0, |at| at + 1), part.clone());
            }
        }
    }
}

/// A part and what there is of it.
#[derive(Clone, Debug)]
pub struct Told {
    /// The part.
    pub part: Part,
    /// How many repetitions have samples.
    pub done: usize,
    /// Why others have none; each reason once.
    pub missing: Vec<Missing>,
}

/// All that a report is made of.
#[derive(Clone, Debug)]
pub struct Data {
    /// `meta.json`.
    pub meta: Meta,
    /// The parts.
    pub parts: Vec<Told>,
    /// Samples by part, repetition and line.
    pub samples: Vec<Sample>,
    /// Notes, each once.
    pub notes: Vec<Note>,
}

/// Reads what a repetition has printed. Every line must be a sample of the experiment or a note, and
/// one a sample.
pub fn parse(experiment: &str, text: &str) -> Result<(Vec<Sample>, Vec<Note>)> {
    let (mut samples, mut notes) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let told = serde_json::from_str(line)
            .ok()
            .with_context(|| format!("neither a sample nor a note: {line}"))?;
        let of = match told {
            Line::Sample(sample) => {
                ensure!(sample.value.is_finite(), "not a number: {line}");
                samples.push(sample);
                &samples[samples.len() - 1].experiment
            }
            Line::Note(note) => {
                notes.push(note);
                &notes[notes.len() - 1].experiment
            }
        };
        ensure!(of == experiment, "of another experiment: {line}");
    }
    ensure!(!samples.is_empty(), "no samples were printed");
    Ok((samples, notes))
}

/// Writes a file so that it is there complete or not at all.
pub fn put(path: &Path, content: &[u8]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let beside = path.with_file_name(name);
        let mut file = File::create(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A folder of results.
#[derive(Clone, Debug)]
pub struct Results {
    folder: PathBuf,
}

impl Results {
    /// Makes the folder, if it is not there.
    pub fn create(folder: &Path) -> Result<Self> {
        for part in ["raw", "log"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(Self { folder: folder.into() })
    }

    /// Opens a folder that has results.
    pub fn open(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        ensure!(folder.join("meta.json").is_file(), "{shown} has no results (no meta.json)");
        Ok(Self { folder: folder.into() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn raw(&self, part: &Part, repetition: u32, kind: &str) -> PathBuf {
        self.folder.join(format!("raw/{}.{}.{repetition}.{kind}", part.experiment, part.part))
    }

    /// Where a script's words go.
    pub fn log(&self, part: &Part, repetition: u32) -> PathBuf {
        self.folder.join(format!("log/{}.{}.{repetition}", part.experiment, part.part))
    }

    /// Whether a repetition has left its samples.
    pub fn is_done(&self, part: &Part, repetition: u32) -> bool {
        self.raw(part, repetition, "jsonl").is_file()
    }

    /// Keeps a repetition's samples.
    pub fn store(&self, part: &Part, repetition: u32, samples: &str) -> Result<()> {
        put(&self.raw(part, repetition, "jsonl"), samples.as_bytes())?;
        let _ = fs::remove_file(self.raw(part, repetition, "json"));
        Ok(())
    }

    /// Keeps why a repetition has none.
    pub fn store_missing(&self, part: &Part, repetition: u32, why: &Missing) -> Result<()> {
        put(&self.raw(part, repetition, "json"), &serde_json::to_vec(why)?)
    }

    /// Reads `meta.json`; an empty one if there is none.
    pub fn meta(&self) -> Result<Meta> {
        let path = self.folder.join("meta.json");
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Meta::default()),
            Err(error) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Keeps `meta.json`.
    pub fn store_meta(&self, meta: &Meta) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(meta)?;
        text.push(b'\n');
        put(&self.folder.join("meta.json"), &text)
    }

    /// The repetitions of a part that there are files of, of one kind.
    fn repetitions(&self, part: &Part, kind: &str) -> Result<BTreeSet<u32>> {
        let (prefix, suffix) = (format!("{}.{}.", part.experiment, part.part), format!(".{kind}"));
        let mut found = BTreeSet::new();
        for entry in self.folder.join("raw").read_dir()? {
            let name = entry?.file_name();
            let number: Option<u32> = name
                .to_str()
                .and_then(|n| n.strip_prefix(&prefix)?.strip_suffix(&suffix)?.parse().ok());
            found.extend(number);
        }
        Ok(found)
    }

    /// Reads everything.
    pub fn load(&self) -> Result<Data> {
        let meta = self.meta()?;
        let (mut parts, mut samples, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for part in &meta.parts {
            let done = self.repetitions(part, "jsonl")?;
            for repetition in &done {
                let path = self.raw(part, *repetition, "jsonl");
                let shown = || path.display().to_string();
                let text = fs::read_to_string(&path).with_context(shown)?;
                let (more, said) = parse(&part.experiment, &text).with_context(shown)?;
                samples.extend(more);
                for note in said {
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                }
            }
            let mut missing = Vec::new();
            for repetition in self.repetitions(part, "json")?.difference(&done) {
                let path = self.raw(part, *repetition, "json");
                let why = serde_json::from_slice(&fs::read(&path)?)
                    .with_context(|| path.display().to_string())?;
                if !missing.contains(&why) {
                    missing.push(why);
                }
            }
            parts.push(Told { part: part.clone(), done: done.len(), missing });
        }
        Ok(Data { meta, parts, samples, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_prints_is_read_or_refused() {
        let sample =
            r#"{"experiment":"e","series":"s","x":8,"metric":"time","unit":"s","value":1.5}"#;
        let note = r#"{"experiment":"e","series":"s","note":"caches were cold"}"#;
        let (samples, notes) = parse("e", &format!("{sample}\n\n{note}\n")).unwrap();
        assert_eq!((samples[0].x.as_str(), samples[0].value), ("8", 1.5));
        assert_eq!(notes[0].note, "caches were cold");
        for wrong in [
            "",
            note,
            "done in 3 s",
            &sample.replace("\"e\"", "\"f\""),
            &sample.replace("1.5", "null"),
            &sample.replace('8', "[]"),
        ] {
            assert!(parse("e", wrong).is_err(), "{wrong}");
        }
    }
}
