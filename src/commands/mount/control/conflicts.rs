//! Conflicts of disk caches, as control sockets tell and settle them.

use std::sync::Arc;

use anyhow::Result;
use gridvfs_cache::DiskCache;
use gridvfs_cache::disk::Conflict;
use serde_json::{Value, json};

use crate::commands::mount::files;
use crate::paths;
use crate::report::Hinted;

/// A session's caches, each with what its paths are told below: a standing proxy's export, or, of a
/// mount, nothing.
pub type Caches<'a> = &'a [(Option<&'a str>, &'a Arc<DiskCache>)];

/// Lists the files in conflict.
pub fn list(caches: Caches<'_>) -> Value {
    let told = |(below, _, conflict): (Option<&str>, _, Conflict)| {
        json!({
            "path": paths::to_value(&path_of(below, &conflict)),
            "kind": conflict.kind.to_string(),
            "unsent_bytes": conflict.unsent_bytes,
        })
    };
    json!({"conflicts": all(caches).map(told).collect::<Vec<_>>()})
}

/// Settles one, which `arguments` name and say how.
///
/// # Errors
/// There is no such conflict; those of the calls.
pub async fn resolve(caches: Caches<'_>, session: &str, arguments: &Value) -> Result<Value> {
    let wanted = paths::from_value(&arguments["path"])?;
    let how = arguments["how"].as_str().unwrap_or_default();
    let how = how.parse().map_err(anyhow::Error::msg)?;
    let listed: Vec<_> = all(caches).collect();
    // Its bytes, or else as people are told of it: few shells take bytes that are no text.
    let is_it = |path: &[u8]| path == wanted;
    let is_told = |path: &[u8]| paths::text(&paths::to_value(path)).as_bytes() == wanted;
    let find = |is: &dyn Fn(&[u8]) -> bool| {
        listed.iter().find(|(below, _, conflict)| is(&path_of(*below, conflict)))
    };
    let Some((below, cache, file)) = find(&is_it).or_else(|| find(&is_told)) else {
        let text = paths::text(&arguments["path"]);
        return Err(Hinted::error(
            format!("{text} is in no conflict"),
            format!("gridvfs conflicts {session} lists those that are"),
        ));
    };
    let saved = cache.resolve(&file.handle, how).await;
    let saved = saved.map_err(|error| anyhow::anyhow!("{}", files::plain(&error)))?;
    Ok(json!({"saved": saved.map(|path| paths::to_value(&within(*below, path)))}))
}

fn all<'a>(
    caches: Caches<'a>,
) -> impl Iterator<Item = (Option<&'a str>, &'a Arc<DiskCache>, Conflict)> {
    caches.iter().flat_map(|(below, cache)| {
        cache.conflicts().into_iter().map(move |conflict| (*below, *cache, conflict))
    })
}

fn path_of(below: Option<&str>, conflict: &Conflict) -> Vec<u8> {
    let path = conflict.path.clone();
    within(below, path.unwrap_or_else(|| format!("{:?}", conflict.handle).into()))
}

fn within(below: Option<&str>, path: Vec<u8>) -> Vec<u8> {
    match below {
        Some(below) => [below.as_bytes(), b"/", &path].concat(),
        None => path,
    }
}
