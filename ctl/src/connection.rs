//! Connections: to the cluster that the command line means, and to the other site.
//!
//! Configuration is librados' business: it reads the configuration file (as named, in `CEPH_CONF`, or in the default
//! places), then `CEPH_ARGS`, then what the command line says. Nothing is read here but what a connection tells.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bootstrap::PeerConnector;
use control::{Options, Pool};
use rados::{Cluster, ConnectOptions, Limits};

use crate::failure::{EXIT_USAGE, Failure};
use crate::grammar::{ClusterArgs, Request};
use crate::spec::PoolSpec;

/// Who we are when nothing else is said.
const DEFAULT_NAME: &str = "client.admin";
/// The pool that is meant when none is named and nothing is configured.
const DEFAULT_POOL: &str = "rbd";

/// What is connected to: this site's cluster.
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
    /// The name that it goes by here (`--cluster`).
    pub cluster_name: String,
    /// Who we are there.
    pub client_name: String,
    /// The configuration file that was named, on the command line or in the environment.
    pub conf_file: Option<PathBuf>,
    /// Options of Ceph from the command line.
    pub ceph_options: BTreeMap<String, String>,
}

impl Site {
    /// Connects as a request says. What is wrong with its form is told before anything is tried.
    pub async fn connect(request: &Request) -> Result<Site, Failure> {
        let options = connect_options(request)?;
        let named = options.conf_file.clone().or_else(|| std::env::var_os("CEPH_CONF").map(PathBuf::from));
        let (cluster_name, client_name) = (options.cluster_name.clone(), options.client_name.clone());
        let ceph_options = options.options.clone();
        let cluster = rados::connect(options).await?;
        Ok(Site { cluster, cluster_name, client_name, conf_file: named, ceph_options })
    }

    /// The name of the pool that is meant when none is named.
    pub fn default_pool(&self) -> String {
        let configured = self.cluster.config("rbd_default_pool").filter(|pool| !pool.is_empty());
        configured.unwrap_or_else(|| DEFAULT_POOL.to_string())
    }

    /// Opens a pool or namespace. ENOENT when there is no such thing.
    pub async fn pool(&self, spec: &PoolSpec) -> Result<Pool, Failure> {
        let default = self.default_pool();
        let name = spec.pool.as_ref().filter(|pool| !pool.is_empty()).unwrap_or(&default);
        let options = Options { cluster_name: self.cluster_name.clone(), ..Options::default() };
        match Pool::open(&self.cluster, name, &spec.namespace, options).await {
            Err(e) if e.is_not_found() && *name == default && spec.namespace.is_empty() => {
                let sentence = format!("{e}: make the default pool, or name another one (--pool)");
                Err(Failure::new(libc::ENOENT, sentence))
            }
            pool => Ok(pool?),
        }
    }

    /// Makes connections to peers.
    pub fn peer_connector(&self) -> PeerConnector {
        PeerConnector { conf_file: self.conf_file.clone(), options: self.ceph_options.clone() }
    }
}

/// How a request wants this site's cluster to be reached.
fn connect_options(request: &Request) -> Result<ConnectOptions, Failure> {
    let args = &request.cluster;
    let mut options = request.ceph_options.clone();
    let own = [("mon_host", &args.mon_host), ("keyfile", &args.keyfile), ("keyring", &args.keyring)];
    for (option, value) in own {
        if let Some(value) = value {
            options.insert(option.to_string(), value.clone());
        }
    }
    Ok(ConnectOptions {
        cluster_name: args.cluster.clone().unwrap_or_else(|| "ceph".to_string()),
        client_name: client_name(args)?,
        conf_file: args.conf.clone(),
        no_conf_file: request.no_conf_file,
        options,
        limits: Limits::default(),
    })
}

fn client_name(args: &ClusterArgs) -> Result<String, Failure> {
    let name = match (&args.name, &args.id) {
        (Some(name), _) => name.clone(),
        (None, Some(id)) => format!("client.{id}"),
        (None, None) => DEFAULT_NAME.to_string(),
    };
    match name.split_once('.') {
        Some((kind, id)) if !kind.is_empty() && !id.is_empty() => Ok(name),
        _ => Err(Failure::new(EXIT_USAGE, format!("'{name}' is no client name; it must be TYPE.ID"))),
    }
}
