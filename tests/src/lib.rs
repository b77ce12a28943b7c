//! Two real Ceph clusters on one machine.
