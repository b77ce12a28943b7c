//! Comparing a copy with its primary: the head, and every user snapshot, byte for byte.

use anyhow::{Context, Result};
use serde_json::Value;
use tests::{Cluster, TwoClusters, compare};

/// How a copy compares.
#[derive(Debug)]
pub struct Compared {
    /// The image's size in bytes, on the primary.
    pub size: u64,
    /// How many user snapshots were compared.
    pub snapshots: usize,
    /// What is different, as sentences; nothing when all is equal.
    pub differences: Vec<String>,
}

/// Compares the image `spec` of both clusters. Nothing may write to either meanwhile.
pub async fn compare_all(clusters: &TwoClusters, spec: &str) -> Result<Compared> {
    let (a, b) = (&clusters.a, &clusters.b);
    let (of_a, of_b) = tokio::try_join!(user_snapshots(a, spec), user_snapshots(b, spec))?;
    let mut differences = Vec::new();
    if of_a != of_b {
        let names =
            |all: &[(String, u64)]| all.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        differences.push(format!(
            "{spec} has the user snapshots ({}) at {}, but ({}) at {}",
            names(&of_a),
            a.name(),
            names(&of_b),
            b.name()
        ));
    }
    let info = a.rbd_json(&["info", spec]).await?;
    let size = info["size"].as_u64().with_context(|| format!("the size of {spec} is unknown: {info}"))?;
    let snapshots = of_a.iter().filter(|snapshot| of_b.contains(snapshot));
    let specs: Vec<String> =
        std::iter::once(spec.to_owned()).chain(snapshots.map(|(name, _)| format!("{spec}@{name}"))).collect();
    for one in &specs {
        let comparison = compare(a, one, b, one).await.with_context(|| format!("cannot compare {one}"))?;
        differences.extend(comparison.expect_equal(one).err().map(|error| error.to_string()));
    }
    Ok(Compared { size, snapshots: specs.len() - 1, differences })
}

/// Names and sizes of the user snapshots, oldest first. Their ids are each cluster's own.
async fn user_snapshots(cluster: &Cluster, spec: &str) -> Result<Vec<(String, u64)>> {
    let list = cluster.rbd_json(&["snap", "ls", spec]).await?;
    let snapshots =
        list.as_array().with_context(|| format!("the list of the snapshots of {spec} is no list"))?;
    let name_and_size =
        |snapshot: &Value| Some((snapshot["name"].as_str()?.to_owned(), snapshot["size"].as_u64()?));
    let all = snapshots.iter().map(name_and_size).collect::<Option<_>>();
    all.with_context(|| format!("cannot read the snapshots of {spec}: {list}"))
}
