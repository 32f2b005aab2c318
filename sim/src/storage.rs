//! What survives a crash: the disk of a candidate's consensus.

use std::cell::RefCell;
use std::rc::Rc;

use iota_protocol::log::{LogBytes, MemoryStorage};
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{Entry, StopSign, Storage, StorageOp, StorageResult};

/// Consensus state that outlives the process that wrote it: every call is on disk when it returns, as the node's is.
#[derive(Clone, Default)]
pub struct Disk(Rc<RefCell<MemoryStorage<LogBytes>>>);

macro_rules! through {
    ($($name:ident(&self $(, $arg:ident: $ty:ty)*) -> $out:ty;)*) => {
        $(fn $name(&self $(, $arg: $ty)*) -> StorageResult<$out> { self.0.borrow().$name($($arg),*) })*
    };
    (mut $($name:ident(&mut self $(, $arg:ident: $ty:ty)*);)*) => {
        $(fn $name(&mut self $(, $arg: $ty)*) -> StorageResult<()> { self.0.borrow_mut().$name($($arg),*) })*
    };
}

impl Storage<LogBytes> for Disk {
    through! { mut
        write_atomically(&mut self, operations: Vec<StorageOp<LogBytes>>);
        append_entry(&mut self, entry: LogBytes);
        append_entries(&mut self, entries: Vec<LogBytes>);
        append_on_prefix(&mut self, from: usize, entries: Vec<LogBytes>);
        set_promise(&mut self, promise: Ballot);
        set_decided_idx(&mut self, index: usize);
        set_accepted_round(&mut self, ballot: Ballot);
        set_stopsign(&mut self, sign: Option<StopSign>);
        trim(&mut self, index: usize);
        set_compacted_idx(&mut self, index: usize);
        set_snapshot(&mut self, snapshot: Option<<LogBytes as Entry>::Snapshot>);
    }
    through! {
        get_decided_idx(&self) -> usize;
        get_accepted_round(&self) -> Option<Ballot>;
        get_entries(&self, from: usize, to: usize) -> Vec<LogBytes>;
        get_log_len(&self) -> usize;
        get_suffix(&self, from: usize) -> Vec<LogBytes>;
        get_promise(&self) -> Option<Ballot>;
        get_stopsign(&self) -> Option<StopSign>;
        get_compacted_idx(&self) -> usize;
        get_snapshot(&self) -> Option<<LogBytes as Entry>::Snapshot>;
    }
}
