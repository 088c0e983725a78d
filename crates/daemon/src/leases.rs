//! Which VMs go when which client goes (`vm run --rm`).
//!
//! A lease is a held connection. It lives in memory only: a VM that hangs on a lease which
//! this daemon does not know is deleted by the reconciler, because its client cannot tell
//! any more whether it is still there.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use banger_proto::id::{LeaseId, VmId};

/// All leases. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<HashMap<LeaseId, BTreeSet<VmId>>>>);

/// The lease that was named is not held by anyone.
#[derive(Debug, thiserror::Error)]
#[error("the lease has ended")]
pub struct LeaseEnded;

impl Leases {
    /// Grants a new lease.
    pub fn grant(&self) -> LeaseId {
        let lease = LeaseId::new();
        self.leases().insert(lease.clone(), BTreeSet::new());
        lease
    }

    /// Hangs `vm` on `lease`.
    ///
    /// # Errors
    /// The lease has ended: the VM must go.
    pub fn bind(&self, lease: &LeaseId, vm: VmId) -> Result<(), LeaseEnded> {
        self.leases().get_mut(lease).ok_or(LeaseEnded)?.insert(vm);
        Ok(())
    }

    /// Ends a lease and returns the VMs that must go with it.
    pub fn end(&self, lease: &LeaseId) -> BTreeSet<VmId> {
        self.leases().remove(lease).unwrap_or_default()
    }

    /// Whether someone holds the lease.
    pub fn is_held(&self, lease: &LeaseId) -> bool {
        self.leases().contains_key(lease)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<LeaseId, BTreeSet<VmId>>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_lease_names_its_vms_once_and_takes_no_more() {
        let leases = Leases::default();
        let lease = leases.grant();
        let vm = VmId::new();
        leases.bind(&lease, vm.clone()).unwrap();
        assert!(leases.is_held(&lease));
        assert_eq!(leases.end(&lease), BTreeSet::from([vm]));
        assert!(leases.end(&lease).is_empty());
        assert!(leases.bind(&lease, VmId::new()).is_err());
    }
}
