//! The report: tables and figures, from raw data alone.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::model::{Fleet, Link, Model};
use super::plot::{Figure, draw};
use super::results::{Data, Missing, Results, put};
use super::summary::{Group, Summary, shown};

/// Of each experiment: its name, the title of its section, what is under the x axis of its figures.
const EXPERIMENTS: [(&str, &str, &str); 7] = [
    ("table1", "Applications on the mount (the paper's Table 1)", ""),
    ("guest", "Applications within a guest (Figures 3 to 5)", ""),
    ("clone", "Cloning (Figure 6 and Table 2)", "clone"),
    ("fleet", "Clones at once through a LAN cache (WAN-P)", "clones at once"),
    ("peers", "Peers", ""),
    ("cost", "Cost against work", ""),
    ("links", "Links", ""),
];
/// What the paper calls what we measured again: experiment, metric, title.
const FIGURES: [(&str, &str, &str); 6] = [
    ("table1", "time", "Table 1: applications on the mount"),
    ("guest", "seismic time", "Figure 3: a seismic job within a guest"),
    ("guest", "LaTeX time", "Figure 4: LaTeX within a guest"),
    ("guest", "kernel build time", "Figure 5: a kernel build within a guest"),
    ("clone", "time", "Figure 6: clones in sequence, to the first answer"),
    ("clone", "total of 8", "Table 2: eight clones"),
];
const CONDITIONS: [(&str, &str); 3] =
    [("links", "round trip"), ("links", "rate"), ("fleet", "processors")];
/// A table with more columns than this is turned.
const COLUMNS_MAX: usize = 8;
/// Links far beyond this machine, for which the model is asked: name, s, bit/s.
const DISTANT: [(&str, Link); 3] = [
    ("10 Gbit/s, 32 ms", Link { rtt: 0.032, rate: 1e10 }),
    ("10 Gbit/s, 150 ms", Link { rtt: 0.150, rate: 1e10 }),
    ("20 Mbit/s, 150 ms", Link { rtt: 0.150, rate: 2e7 }),
];
const FLEETS: [f64; 4] = [8.0, 64.0, 256.0, 1024.0];

/// A section of the report.
pub struct Section {
    /// An experiment, or `machine`, `parts`, `model`.
    pub name: String,
    title: String,
    /// Markdown; figures' paths are relative to the results.
    pub text: String,
}

/// Makes report.md and the figures in a folder of results. The same raw data give the same files.
pub fn write(results: &Results) -> Result<()> {
    let data = results.load()?;
    let groups = Group::all(&data);
    for entry in results.folder().read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "svg" || e == "png") {
            std::fs::remove_file(&path)?;
        }
    }
    for group in groups.iter().filter(|group| is_drawn(group)) {
        let title = title_of(group);
        let (y_label, x_label) = axes(group);
        let figure = Figure { title: &title, x_label: &x_label, y_label: &y_label, group };
        let file = results.folder().join(file_of(group));
        draw(&figure, &file).with_context(|| format!("cannot draw {}", file.display()))?;
    }
    let mut text = String::from("# The evaluation\n\n");
    text.push_str("Made by `gridvfs-bench report` from the files in `raw/`.\n");
    for section in sections(&data, &groups) {
        let _ = write!(text, "\n## {}\n\n{}", section.title, section.text);
    }
    put(&results.folder().join("report.md"), text.as_bytes())
}

/// The report's sections.
pub fn sections(data: &Data, groups: &[Group]) -> Vec<Section> {
    let mut sections = vec![
        Section { name: "machine".into(), title: "The machine".into(), text: machine(data) },
        Section { name: "parts".into(), title: "What was run".into(), text: parts(data) },
    ];
    let mut names: Vec<&str> = EXPERIMENTS.iter().map(|(name, ..)| *name).collect();
    for part in &data.meta.parts {
        if !names.contains(&part.experiment.as_str()) {
            names.push(&part.experiment);
        }
    }
    for name in names {
        let own: Vec<&Group> = groups.iter().filter(|g| g.experiment == name).collect();
        if !own.is_empty() {
            let title = known(name).map_or(name, |(_, title, _)| title);
            let text = experiment(name, &own, data);
            sections.push(Section { name: name.into(), title: title.into(), text });
        }
    }
    let text = model(groups);
    if !text.is_empty() {
        sections.push(Section { name: "model".into(), title: "The model".into(), text });
    }
    sections
}

fn known(name: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    EXPERIMENTS.iter().find(|(known, ..)| *known == name)
}

fn title_of(group: &Group) -> String {
    let papers = FIGURES.iter().find(|(e, m, _)| *e == group.experiment && *m == group.metric);
    papers.map_or_else(
        || format!("{}: {}", group.experiment, group.metric),
        |(.., title)| (*title).to_owned(),
    )
}

/// What is on the axes: a metric "A by B" has A on the y axis, B on the x axis. Categories tell
/// themselves what they are.
fn axes(group: &Group) -> (String, String) {
    let of_experiment = known(&group.experiment).filter(|_| group.numbers().is_some());
    let (y, x) = group
        .metric
        .split_once(" by ")
        .unwrap_or_else(|| (&group.metric, of_experiment.map_or("", |(_, _, label)| label)));
    (format!("{y} ({})", group.unit), x.into())
}

fn file_of(group: &Group) -> String {
    let name = format!("{}-{}", group.experiment, group.metric).to_lowercase();
    let mut file = String::new();
    for letter in name.chars() {
        match letter {
            'a'..='z' | '0'..='9' => file.push(letter),
            _ if !file.ends_with('-') => file.push('-'),
            _ => {}
        }
    }
    file.trim_matches('-').into()
}

/// One or two values need no figure, nor do the conditions under which others were measured.
fn is_drawn(group: &Group) -> bool {
    let name = (group.experiment.as_str(), group.metric.as_str());
    !CONDITIONS.contains(&name) && group.series.len() * group.xs.len() > 2
}

fn machine(data: &Data) -> String {
    let mut text = String::from(
        "| begun | commit | kernel | processors | memory MiB | disk | load | root | full |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let word = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => String::new(),
        serde_json::Value::Bool(is) => if *is { "yes" } else { "no" }.into(),
        other => other.to_string(),
    };
    for run in &data.meta.runs {
        let cpu = format!("{} × {}", word(&run["processors"]), word(&run["cpu"]));
        let disk = format!("{} ({})", word(&run["disk"]["type"]), word(&run["disk"]["place"]));
        let cells = [
            word(&run["date"]),
            word(&run["commit"]),
            word(&run["kernel"]),
            cpu,
            word(&run["memory_mib"]),
            disk,
            word(&run["load"]),
            word(&run["root"]),
            word(&run["full"]),
        ];
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    if let Some(tools) = data.meta.runs.last().and_then(|run| run["tools"].as_object()) {
        let tools: Vec<String> = tools.iter().map(|(n, v)| format!("{n}: {}", word(v))).collect();
        let _ = write!(text, "\n{}.\n", tools.join("; "));
    }
    text
}

fn parts(data: &Data) -> String {
    let done = data.parts.iter().filter(|told| told.done >= told.part.repeats as usize).count();
    let mut text = format!("{done} of {} parts have all their repetitions.", data.parts.len());
    if done == data.parts.len() {
        text.push('\n');
        return text;
    }
    text.push_str(" The others:\n\n| part | what | repetitions | why |\n|---|---|---|---|\n");
    for told in data.parts.iter().filter(|told| told.done < told.part.repeats as usize) {
        let mut why: Vec<String> = told
            .missing
            .iter()
            .map(|missing| match missing {
                Missing::Skipped(why) => format!("cannot be had here: {}", cell_text(why)),
                Missing::Failed(why) => format!("**failed**: {}", cell_text(why)),
            })
            .collect();
        if why.is_empty() {
            why.push("not run yet".into());
        }
        let (part, done) = (&told.part, told.done);
        let (name, title, why) = (part.name(), cell_text(&part.title), why.join("; "));
        let _ = writeln!(text, "| {name} | {title} | {done} of {} | {why} |", part.repeats);
    }
    text
}

fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn experiment(name: &str, groups: &[&Group], data: &Data) -> String {
    let mut text = String::new();
    for group in groups {
        let papers = FIGURES.iter().find(|(e, m, _)| *e == name && *m == group.metric);
        let title = papers.map_or(group.metric.as_str(), |(.., title)| title);
        let _ = write!(text, "### {title} ({})\n\n{}", group.unit, table(group));
        if name == "table1" && group.metric == "time" {
            let _ = write!(text, "\n{}", overheads(group));
        }
        if is_drawn(group) {
            let file = file_of(group);
            let _ = write!(text, "\n![{}]({file}.svg)\n", title_of(group));
        }
        text.push('\n');
    }
    let notes: Vec<_> = data.notes.iter().filter(|note| note.experiment == name).collect();
    for note in &notes {
        let of = if note.series.is_empty() { String::new() } else { format!("{}: ", note.series) };
        let _ = writeln!(text, "- {of}{}", note.note);
    }
    text
}

/// A median, and the spread if there is one.
fn cell(summary: Option<Summary>) -> String {
    match summary {
        None => String::new(),
        Some(s) if s.n == 1 => shown(s.median),
        Some(s) => format!("{} ({}–{})", shown(s.median), shown(s.min), shown(s.max)),
    }
}

fn table(group: &Group) -> String {
    let turned = group.xs.len() > COLUMNS_MAX && group.series.len() < group.xs.len();
    let (rows, columns) =
        if turned { (&group.xs, &group.series) } else { (&group.series, &group.xs) };
    let of = |row: &str, column: &str| {
        if turned { group.cell(column, row) } else { group.cell(row, column) }
    };
    let mut counts: Vec<usize> = Vec::new();
    let mut text =
        format!("| | {} |\n|---|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
    for row in rows {
        let cells: Vec<_> = columns.iter().map(|column| of(row, column)).collect();
        counts.extend(cells.iter().flatten().map(|summary| summary.n));
        let cells: Vec<_> = cells.into_iter().map(cell).collect();
        let _ = writeln!(text, "| {row} | {} |", cells.join(" | "));
    }
    let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
    let n = if least == most { least.to_string() } else { format!("{least} to {most}") };
    let _ = write!(text, "\nMedian (least–most), n = {n}.\n");
    text
}

/// Table 1 as the paper has it: how much longer than another, in per cent, by the medians.
fn overheads(group: &Group) -> String {
    let pairs = [("LAN/G", "LAN/N"), ("LAN/G", "Local"), ("WAN/G", "Local"), ("WAN/GC", "Local")];
    let xs: Vec<&String> = group.xs.iter().filter(|x| group.cell("Local", x).is_some()).collect();
    let names: Vec<&str> = xs.iter().map(|x| x.as_str()).collect();
    let mut text =
        format!("| overhead (%) | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(xs.len()));
    for (ours, other) in pairs {
        let cells: Vec<Option<f64>> = xs
            .iter()
            .map(|x| {
                let ratio = group.cell(ours, x)?.median / group.cell(other, x)?.median;
                Some((ratio - 1.0) * 100.0)
            })
            .collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> =
                cells.iter().map(|c| c.map_or(String::new(), |c| format!("{c:.0}"))).collect();
            let _ = writeln!(text, "| {ours} vs. {other} | {} |", cells.join(" | "));
        }
    }
    text
}

fn model(groups: &[Group]) -> String {
    let model = Model::of(groups);
    let mut text = String::new();
    if !model.workloads.is_empty() {
        text.push_str("What `links` measured on LAN and WAN comes to:\n\n");
        text.push_str("| workload | work W (s) | round trips waited for n | bytes over the link B (MiB) |\n|---|---|---|---|\n");
        for (name, workload) in &model.workloads {
            let (work, trips) = (shown(workload.work), shown(workload.trips));
            let mib = shown(workload.bytes / 1048576.0);
            let _ = writeln!(text, "| {name} | {work} | {trips} | {mib} |");
        }
        text.push_str("\nWhat this predicts for other links, and what was measured there:\n\n");
        text.push_str("| link | workload | predicted (s) | measured (s) | predicted / measured |\n|---|---|---|---|---|\n");
        for c in &model.checked {
            let ratio = shown(c.predicted / c.measured.median);
            let (predicted, measured) = (shown(c.predicted), cell(Some(c.measured)));
            let _ = writeln!(
                text,
                "| {} | {} | {predicted} | {measured} | {ratio} |",
                c.link, c.workload
            );
        }
        text.push_str("\nAnd for links that this machine cannot emulate or nobody has waited for, with what limits them:\n\n");
        let names = DISTANT.map(|(name, _)| format!("{name} (s)"));
        let _ = writeln!(text, "| workload | {} |\n|---|---|---|---|", names.join(" | "));
        for (name, workload) in &model.workloads {
            let cells = DISTANT.map(|(_, link)| {
                format!("{}: {}", shown(workload.time(link)), workload.limit(link))
            });
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        text.push('\n');
    }
    if let Some(fleet) = Fleet::of(groups) {
        text.push_str(&fleets(&fleet, groups));
    }
    text
}

fn fleets(fleet: &Fleet, groups: &[Group]) -> String {
    let here = std::iter::once("processors");
    let processors = here
        .filter_map(|metric| {
            let group = groups.iter().find(|g| g.experiment == "fleet" && g.metric == metric)?;
            Some(group.cell("cold", "1")?.median)
        })
        .next();
    let time = groups.iter().find(|g| g.experiment == "fleet" && g.metric == "time");
    let mut text = String::from("Clones at once through one LAN cache, cold.\n\n");
    if let (Some(processors), Some(time)) = (processors, time) {
        text.push_str("| at once | predicted for this machine (s) | measured (s) | predicted / measured |\n|---|---|---|---|\n");
        for x in time.xs.iter().filter(|x| !Fleet::FITTED.contains(&x.as_str())) {
            let (Ok(count), Some(measured)) = (x.parse::<f64>(), time.cell("cold", x)) else {
                continue;
            };
            let predicted = fleet.time(count, processors, f64::INFINITY);
            let (ratio, told) = (shown(predicted / measured.median), shown(predicted));
            let _ = writeln!(text, "| {x} | {told} | {} | {ratio} |", cell(Some(measured)));
        }
        text.push('\n');
    }
    text.push_str("Where each compute server has two processors of its own, the LAN cache is no bottleneck but for its LAN:\n\n");
    text.push_str("| at once | LAN of 1 Gbit/s (s) | LAN of 25 Gbit/s (s) | MiB over the WAN |\n|---|---|---|---|\n");
    for count in FLEETS {
        let [slow, fast] = [1e9, 25e9].map(|lan| shown(fleet.time(count, 2.0 * count, lan)));
        let _ =
            writeln!(text, "| {count} | {slow} | {fast} | {} |", shown(fleet.bytes / 1048576.0));
    }
    text
}

/// What a document says between these is made by [`fill`].
const BEGIN: &str = "<!-- gridvfs-bench: ";
const END: &str = "<!-- /gridvfs-bench -->";

/// Puts sections into a document: between `<!-- gridvfs-bench: NAME -->` and
/// `<!-- /gridvfs-bench -->`. `folder` is the results' path from the document.
pub fn fill(document: &str, results: Option<&Results>, folder: &str) -> Result<String> {
    let sections = match results {
        Some(results) => {
            let data = results.load()?;
            sections(&data, &Group::all(&data))
        }
        None => Vec::new(),
    };
    let mut out = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(name) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        if !lines.by_ref().any(|line| line == END) {
            bail!("{line} is not ended by {END}");
        }
        out.push('\n');
        if name == "report" && results.is_some() {
            let _ = writeln!(out, "[{folder}/report.md]({folder}/report.md)");
        } else if let Some(section) = sections.iter().find(|section| section.name == name) {
            out.push_str(
                &section.text.replace("](", &format!("]({folder}/")).replace("\n### ", "\n#### "),
            );
        } else {
            out.push_str("Not measured.\n");
        }
        let _ = write!(out, "\n{END}\n");
    }
    Ok(out)
}

/// What a document names while there are no results.
pub const NO_RESULTS: &str = "none";

/// Where a document says that its figures are from: the line `<!-- gridvfs-bench results: FOLDER -->`.
pub fn source(document: &str) -> Option<&str> {
    document
        .lines()
        .find_map(|line| line.strip_prefix("<!-- gridvfs-bench results: ")?.strip_suffix(" -->"))
}

/// The path of one folder from another; both must be there.
pub fn relative(to: &Path, from: &Path) -> Result<String> {
    let (to, from) = (to.canonicalize()?, from.canonicalize()?);
    let shared = to.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| "..".as_ref());
    let parts: Vec<_> = up.chain(to.components().skip(shared).map(|c| c.as_os_str())).collect();
    Ok(parts.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/"))
}
