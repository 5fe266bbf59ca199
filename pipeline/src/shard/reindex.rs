//! Indexes, and if asked a manifest, for shards that exist already.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::atomic::AtomicFile;
use super::index::index_path;
use super::manifest::{MANIFEST_SUFFIX, Manifest, ManifestShard, TOOL, checksum_text};
use super::map::Map;
use super::pattern::{Found, files_in, is_manifest_name, resolve};
use super::pool::{Progress, in_order};
use super::scan::{Depth, Scanned, scan_map};
use super::staging::clear_files;
use super::tar::Links;
use super::zst::is_seekable;
use super::{Limits, passage};
use crate::{Error, Result};
use serde::Serialize;

/// What [`index_shards`] found in one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Indexed {
    /// The shard.
    pub shard: PathBuf,
    /// Its samples.
    pub samples: u64,
    /// Samples passed over because they have no image.
    pub without_image: u64,
    /// Links in place of members of samples; they are not followed.
    pub links: Links,
    /// Images whose header was not understood.
    pub unreadable: u64,
    /// Whether the archive ends as it should.
    pub ended: bool,
    /// Where bytes that are not zero follow the end of the archive; they are not read.
    pub trailing: Option<u64>,
    /// Whether the shard allows random access.
    pub seekable: bool,
}

/// Writes the index of every shard of `pattern` beside it, and, when `manifest` is given, a
/// manifest of that name, with `classes` as the names of the classes, one for each, or none: then
/// those of the manifest that is replaced stay. The shards must lie in the manifest's folder, and
/// in no other manifest there. `threads` threads, 0 for one per core.
///
/// # Errors
/// [`Error::Shard`] and [`Error::Sample`] for the first damage; [`Error::Io`]; [`Error::Usage`]
/// when nothing matches, for a manifest that would not be found, and for labels without a name.
pub fn index_shards(
    pattern: &str,
    manifest: Option<&Path>,
    classes: &[String],
    limits: &Limits,
    threads: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Indexed>> {
    let found = resolve(pattern, false, limits)?.shards;
    let mut replaced = None;
    if let Some(manifest) = manifest {
        check_place(manifest, &found)?;
        replaced = manifest_before(manifest, &found, limits)?;
    }
    let indexes = found.iter().map(|shard| index_path(&shard.path));
    clear_files(&indexes.chain(manifest.map(Path::to_owned)).collect::<Vec<_>>())?;
    let (mut reports, mut shards, mut counts) =
        (Vec::new(), Vec::new(), BTreeMap::<u32, u64>::new());
    let (total, mut bytes) = (found.len() as u64, 0);
    in_order(
        threads,
        found.len(),
        || (),
        |(), shard| index_one(&found[shard].path, manifest.is_some(), limits),
        |done, indexed| {
            let (report, shard, labels) = indexed?;
            labels.iter().for_each(|(&label, count)| *counts.entry(label).or_default() += count);
            bytes += shard.bytes;
            reports.push(report);
            shards.push(shard);
            let done = done as u64 + 1;
            progress(Progress { unit: "shards", done, total, bytes });
            Ok(())
        },
    )?;
    let largest = counts.keys().next_back().map_or(0, |&label| label as usize);
    if !classes.is_empty() && largest >= classes.len() {
        return Err(Error::Usage(format!(
            "{pattern}: {} names of classes, but labels up to {largest}; the indexes are written",
            classes.len(),
        )));
    }
    if let Some(path) = manifest {
        let mut made = serde_json::json!({ "tool": TOOL, "source": pattern, "indexed": true });
        let mut names = classes.to_vec();
        if let Some(replaced) = replaced {
            if names.is_empty() {
                names = replaced.class_names();
            }
            if !names.is_empty() && names.len() <= largest {
                tracing::warn!(
                    "{}: labels go up to {largest}, and it named {} classes: the classes have no names now",
                    path.display(),
                    names.len()
                );
                names.clear();
            }
            // How the shards were packed stays known, however often they are indexed.
            let packed = &replaced.made;
            made["packed"] = packed.get("packed").unwrap_or(packed).clone();
        }
        let manifest = Manifest::new(shards, Manifest::listed(&names, &counts), made);
        AtomicFile::write_all(path, manifest.to_json().as_bytes())?;
    }
    Ok(reports)
}

type One = (Indexed, ManifestShard, BTreeMap<u32, u64>);

/// Refuses a manifest that no folder would be found to have, that lies elsewhere than its shards,
/// or that cannot name them.
fn check_place(manifest: &Path, shards: &[Found]) -> Result<()> {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    if !is_manifest_name(&name) {
        return Err(Error::Usage(format!(
            "{}: a manifest is called {MANIFEST_SUFFIX} or PREFIX.{MANIFEST_SUFFIX}",
            manifest.display()
        )));
    }
    let (mut before, own) = (None, folder_of(manifest)?);
    for shard in shards {
        if shard.path.file_name().and_then(OsStr::to_str).is_none() {
            return Err(Error::Usage(format!(
                "{}: a manifest is UTF-8, and the name of this shard is not: rename it",
                shard.path.display()
            )));
        }
        // Of thousands of shards most are in the folder of the one before.
        let folder = shard.path.parent();
        if before != Some(folder) && folder_of(&shard.path)? != own {
            let path = shard.path.display();
            return Err(Error::Usage(format!(
                "{path}: the manifest must lie in the same folder as its shards"
            )));
        }
        before = Some(folder);
    }
    Ok(())
}

/// The manifest that one at `path` is to replace, if it can be read.
///
/// # Errors
/// [`Error::Usage`] for a file of that name that is no manifest, and for another manifest of the
/// folder that lists one of the shards.
fn manifest_before(path: &Path, shards: &[Found], limits: &Limits) -> Result<Option<Manifest>> {
    let replaced = match Manifest::read(path, limits) {
        Ok(None) => {
            return Err(Error::Usage(format!(
                "{}: is there, and no manifest of shards: choose another name",
                path.display()
            )));
        }
        Ok(replaced) => replaced,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        // One that is to be mended.
        Err(error @ Error::Shard { .. }) => {
            tracing::warn!("{error}; it is replaced, and names of classes in it are lost");
            None
        }
        Err(error) => return Err(error),
    };
    let names: HashSet<_> = shards.iter().filter_map(|shard| shard.path.file_name()).collect();
    for file in files_in(&folder_of(path)?)? {
        let name = file.file_name().unwrap_or_default();
        if path.file_name() == Some(name) || !is_manifest_name(&name.to_string_lossy()) {
            continue;
        }
        let Ok(Some(other)) = Manifest::read(&file, limits) else { continue };
        if let Some(shard) =
            other.shards.iter().find(|shard| names.contains(OsStr::new(&shard.name)))
        {
            return Err(Error::Usage(format!(
                "{} lists {} already, and a shard counts once in its folder: write that manifest anew \
                 (--manifest {0}), or remove it",
                file.display(),
                shard.name
            )));
        }
    }
    Ok(replaced)
}

/// The folder of a file by its own name, without links and dots.
fn folder_of(file: &Path) -> Result<PathBuf> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    folder.canonicalize().map_err(|e| Error::io(folder, e))
}

fn index_one(path: &Path, with_checksum: bool, limits: &Limits) -> Result<One> {
    let map = Map::open(path)?;
    let Scanned { index, bytes, without_image, links, ended, trailing } =
        scan_map(&map, path, Depth::Full, limits)?;
    AtomicFile::write_all(&index_path(path), &bytes)?;
    let (mut unreadable, mut labels) = (0, BTreeMap::new());
    for i in 0..index.len() {
        let entry = index.entry(i);
        unreadable += u64::from(entry.width == 0);
        if let Some(label) = entry.label {
            *labels.entry(label).or_default() += 1;
        }
    }
    let file = map.as_ref();
    let seekable = is_seekable(file, file);
    let samples = index.len() as u64;
    let without_image = without_image.into();
    let shard = ManifestShard {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        samples,
        bytes: file.len() as u64,
        checksum: if with_checksum {
            checksum_text(passage::checksum(&map))
        } else {
            String::new()
        },
        seekable,
    };
    let report = Indexed {
        shard: path.to_owned(),
        samples,
        without_image,
        links,
        unreadable,
        ended,
        trailing,
        seekable,
    };
    Ok((report, shard, labels))
}
