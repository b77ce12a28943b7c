//! How pools and images are shown: what `rbd mirror pool info|status` and `rbd mirror image status` print, byte for byte.
//!
//! Ceph's own tool changed some of it with release 20. What is printed here is what the `rbd` of the cluster's own
//! release prints ([`Dialect`]).
//!
//! Reference: `src/tools/rbd/action/MirrorPool.cc`, `src/tools/rbd/action/MirrorImage.cc`.

use std::fmt::Write;

use control::report::direction_name;
use control::{Daemon, ImageStatus, PeerInfo, PoolInfo, PoolStatus, SiteReport};
use rados::{Cluster, CommandTarget};
use rbd::mirroring::MirrorMode;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Document, time};

/// The first release that prints in the newer way.
const NEWER_RELEASE: u32 = 20;

/// The manner in which an `rbd` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Of Ceph 16 to 19.
    Older,
    /// From Ceph 20 on.
    Newer,
}

impl Dialect {
    /// That of the release that the cluster's monitors run.
    pub async fn of(cluster: &Cluster) -> Result<Dialect, Failure> {
        let reply = cluster.command(CommandTarget::Mon, json!({"prefix": "version"}), "").await?;
        Ok(Dialect::from_version(&String::from_utf8_lossy(&reply.output)))
    }

    /// From the text `ceph version 16.2.15 (…) …`, bare or within JSON.
    fn from_version(text: &str) -> Dialect {
        let number = text.split("ceph version ").nth(1).and_then(|rest| rest.split('.').next());
        match number.and_then(|number| number.parse::<u32>().ok()) {
            Some(release) if release >= NEWER_RELEASE => Dialect::Newer,
            _ => Dialect::Older,
        }
    }
}

// Writing to a string cannot fail.
macro_rules! line {
    ($text:expr, $($arg:tt)*) => { let _ = writeln!($text, $($arg)*); };
}

/// What `mirror pool info` prints.
pub fn pool_info(
    info: &PoolInfo,
    is_namespace: bool,
    all: bool,
    dialect: Dialect,
    document: Option<Document>,
) -> String {
    let mode = match info.mode {
        MirrorMode::Unknown(_) => "unknown".to_string(),
        mode => mode.to_string(),
    };
    let enabled = info.mode != MirrorMode::Disabled;
    let uuid = info.mirror_uuid.as_deref().unwrap_or_default();
    let Some(mut document) = document else {
        let mut text = format!("Mode: {mode}\n");
        if enabled && !is_namespace {
            line!(text, "Site Name: {}", info.site_name);
        }
        match dialect {
            Dialect::Newer if enabled => {
                line!(text, "Mirror UUID: {uuid}\nRemote Namespace: {}\n", info.remote_namespace);
            }
            Dialect::Older if enabled && !is_namespace => text.push('\n'),
            _ => {}
        }
        if enabled && !is_namespace {
            peers_plain(&mut text, &info.peers, all);
        }
        return text;
    };
    document.object("mirror", |d| {
        d.string("mode", &mode);
        if enabled && !is_namespace {
            d.string("site_name", &info.site_name);
        }
        if enabled && dialect == Dialect::Newer {
            d.string("mirror_uuid", uuid);
            d.string("remote_namespace", &info.remote_namespace);
        }
        if enabled && !is_namespace {
            d.array("peers", |d| {
                info.peers.iter().for_each(|peer| d.object("peer", |d| peer_fields(d, peer)))
            });
        }
    });
    document.finish()
}

fn peers_plain(text: &mut String, peers: &[PeerInfo], all: bool) {
    line!(text, "Peer Sites: {}", if peers.is_empty() { "none" } else { "" });
    for peer in peers {
        line!(text, "\nUUID: {}\nName: {}", peer.uuid, peer.site_name);
        if peer.direction.transmits() || !peer.mirror_uuid.is_empty() {
            line!(text, "Mirror UUID: {}", peer.mirror_uuid);
        }
        line!(text, "Direction: {}", direction_name(peer.direction));
        if peer.direction.receives() || !peer.client_name.is_empty() {
            line!(text, "Client: {}", peer.client_name);
        }
        if all {
            let attribute = |name| {
                peer.attributes.as_ref().and_then(|a| a.exposed().get(name)).map_or("", String::as_str)
            };
            line!(text, "Mon Host: {}\nKey: {}", attribute("mon_host"), attribute("key"));
        }
        if peers.last().is_some_and(|last| last.site_name != peer.site_name) {
            text.push('\n');
        }
    }
}

fn peer_fields(d: &mut Document, peer: &PeerInfo) {
    d.string("uuid", &peer.uuid);
    d.string("direction", direction_name(peer.direction));
    d.string("site_name", &peer.site_name);
    d.string("mirror_uuid", &peer.mirror_uuid);
    d.string("client_name", &peer.client_name);
    for (name, value) in peer.attributes.iter().flat_map(|attributes| attributes.exposed()) {
        d.string(name, value);
    }
}

/// What `mirror pool status` prints, with daemons and images when they were asked for.
pub fn pool_status(status: &PoolStatus, dialect: Dialect, document: Option<Document>) -> String {
    let Some(mut document) = document else {
        return pool_status_plain(status, dialect);
    };
    document.object("status", |d| {
        d.object("summary", |d| {
            d.string("health", &status.health.to_string());
            d.string("daemon_health", &status.daemon_health.to_string());
            d.string("image_health", &status.image_health.to_string());
            d.object("states", |d| {
                status.states.iter().for_each(|count| d.bare(&count.state.to_string(), count.images));
            });
        });
        if let Some(images) = &status.images {
            d.array("daemons", |d| {
                status.daemons.iter().for_each(|daemon| d.object("daemon", |d| daemon_fields(d, daemon)));
            });
            d.array("images", |d| {
                images.iter().for_each(|image| d.object("image", |d| image_fields(d, image, dialect)));
            });
        }
    });
    document.finish()
}

fn pool_status_plain(status: &PoolStatus, dialect: Dialect) -> String {
    let total: u32 = status.states.iter().map(|count| count.images).sum();
    let mut text = format!(
        "health: {}\ndaemon health: {}\nimage health: {}\nimages: {total} total\n",
        status.health, status.daemon_health, status.image_health
    );
    for count in &status.states {
        line!(text, "    {} {}", count.images, count.state);
    }
    let Some(images) = &status.images else { return text };
    text.push_str(match dialect {
        Dialect::Older => "\nDAEMONS\n",
        Dialect::Newer => "\nDAEMONS",
    });
    let daemons = status.daemons.iter().map(daemon_plain);
    match dialect {
        Dialect::Older if status.daemons.is_empty() => text.push_str("  none\n\n"),
        Dialect::Older => {
            text.extend(daemons.map(|daemon| daemon + "\n"));
            text.push('\n');
        }
        Dialect::Newer if status.daemons.is_empty() => text.push_str("\n  none\n\n"),
        Dialect::Newer => {
            text.extend(daemons.map(|daemon| format!("\n{daemon}")));
            text.push('\n');
        }
    }
    text.push_str("IMAGES");
    for image in images {
        line!(text, "\n{}:\n  global_id:   {}", image.info.name, global_id(image));
        image_plain(&mut text, image);
    }
    if images.is_empty() && dialect == Dialect::Newer {
        text.push_str("\n  none\n");
    }
    text
}

fn daemon_plain(daemon: &Daemon) -> String {
    let mut text = format!(
        "service {}:\n  instance_id: {}\n  client_id: {}\n  hostname: {}\n  version: {}\n  leader: {}\n  health: {}\n",
        daemon.service_id,
        daemon.instance_id,
        daemon.client_id,
        daemon.hostname,
        daemon.ceph_version,
        daemon.leader,
        daemon.health
    );
    if !daemon.callouts.is_empty() {
        line!(text, "  callouts: {}", daemon.callouts.join(","));
    }
    text
}

fn daemon_fields(d: &mut Document, daemon: &Daemon) {
    d.string("service_id", &daemon.service_id);
    d.string("instance_id", &daemon.instance_id);
    d.string("client_id", &daemon.client_id);
    d.string("hostname", &daemon.hostname);
    d.string("ceph_version", &daemon.ceph_version);
    d.bare("leader", daemon.leader);
    d.string("health", &daemon.health.to_string());
    if !daemon.callouts.is_empty() {
        d.array("callouts", |d| daemon.callouts.iter().for_each(|callout| d.string("callout", callout)));
    }
}

/// What `mirror image status` prints.
pub fn image_status(status: &ImageStatus, dialect: Dialect, document: Option<Document>) -> String {
    if let Some(mut document) = document {
        document.object("image", |d| {
            image_fields(d, status, dialect);
            if !status.snapshots.is_empty() {
                d.array("snapshots", |d| snapshot_fields(d, status));
            }
        });
        return document.finish();
    }
    let mut text = format!("{}:\n  global_id:   {}\n", status.info.name, global_id(status));
    image_plain(&mut text, status);
    if !status.snapshots.is_empty() {
        let snapshots = status.snapshots.iter().map(|snapshot| {
            let demoted = if snapshot.demoted { "demoted " } else { "" };
            let peers = snapshot.mirror_peer_uuids.join(",");
            format!("    {} {} ({demoted}peer_uuids:[{peers}])\n", snapshot.id, snapshot.name)
        });
        line!(text, "  snapshots:");
        text.extend(snapshots);
    }
    text
}

fn global_id(status: &ImageStatus) -> &str {
    status.info.global_id.as_ref().map_or("", |id| id.0.as_str())
}

fn image_plain(text: &mut String, status: &ImageStatus) {
    let updated = |site: &SiteReport| time::local(site.last_update.seconds.into());
    if let Some(local) = &status.local {
        line!(text, "  state:       {}\n  description: {}", local.label(), local.description);
        if let Some(daemon) = &status.daemon {
            line!(text, "  service:     {}", daemon.description());
        }
        line!(text, "  last_update: {}", updated(local));
    }
    if status.peer_sites.is_empty() {
        return;
    }
    let sites = status.peer_sites.iter().map(|site| {
        let name = site.site_name.as_deref().unwrap_or(&site.mirror_uuid);
        format!(
            "    name: {name}\n    state: {}\n    description: {}\n    last_update: {}\n",
            site.label(),
            site.description,
            updated(site)
        )
    });
    line!(text, "  peer_sites:");
    text.push_str(&sites.collect::<Vec<_>>().join("\n"));
}

fn image_fields(d: &mut Document, status: &ImageStatus, dialect: Dialect) {
    d.string("name", &status.info.name);
    d.string("global_id", global_id(status));
    if let Some(local) = &status.local {
        d.string("state", &local.label());
        d.string("description", &local.description);
        if let Some(daemon) = &status.daemon {
            d.object("daemon_service", |d| {
                d.string("service_id", &daemon.service_id);
                d.string("instance_id", &daemon.instance_id);
                d.string("daemon_id", &daemon.client_id);
                d.string("hostname", &daemon.hostname);
            });
        }
        d.string("last_update", &time::local(local.last_update.seconds.into()));
    }
    if status.peer_sites.is_empty() {
        return;
    }
    let mirror_uuid = match dialect {
        Dialect::Older => "mirror_uuids",
        Dialect::Newer => "mirror_uuid",
    };
    d.array("peer_sites", |d| {
        for site in &status.peer_sites {
            d.object("peer_site", |d| {
                d.string("site_name", site.site_name.as_deref().unwrap_or_default());
                d.string(mirror_uuid, &site.mirror_uuid);
                d.string("state", &site.label());
                d.string("description", &site.description);
                d.string("last_update", &time::local(site.last_update.seconds.into()));
            });
        }
    });
}

fn snapshot_fields(d: &mut Document, status: &ImageStatus) {
    for snapshot in &status.snapshots {
        d.object("snapshot", |d| {
            d.bare("id", snapshot.id);
            d.string("name", &snapshot.name);
            d.bare("demoted", snapshot.demoted);
            d.array("mirror_peer_uuids", |d| {
                snapshot.mirror_peer_uuids.iter().for_each(|peer| d.string("peer_uuid", peer));
            });
        });
    }
}
