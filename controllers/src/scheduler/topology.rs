//! The parts that node labels divide the nodes into, as small numbers.
//!
//! ```text
//! topology.kubernetes.io/zone:   node 0 -> a = 0    node 1 -> b = 1    node 2 -> a = 0
//! ```
//!
//! So what is summed up over parts is summed up in arrays.

use std::collections::HashMap;
use std::sync::Arc;

use super::snapshot::NodeIndex;
use super::terms::Labels;

/// How many label keys are kept numbered; beyond that, the one not used for longest gives way, if
/// the present decision does not use it.
const MAX_COLUMNS: usize = 64;

const NO_VALUE: u32 = u32::MAX;

/// A label key whose values are numbered. Good until the next decision begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColumnId(usize);

/// The values of some labels of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Topology {
    columns: Vec<Column>,
    decision: u64,
}

#[derive(Debug)]
struct Column {
    key: Arc<str>,
    numbers: HashMap<String, u32>,
    of_node: Vec<u32>,
    last_used: u64,
}

impl Topology {
    /// Begins a decision: what was used for earlier ones may give way.
    pub(crate) fn begin_decision(&mut self) {
        self.decision += 1;
    }

    /// The column of a label key; `nodes` are all nodes with their labels.
    pub(crate) fn column<'a>(
        &mut self,
        key: &Arc<str>,
        nodes: impl Iterator<Item = (NodeIndex, &'a Labels)>,
    ) -> ColumnId {
        let decision = self.decision;
        if let Some(id) = self.columns.iter().position(|column| column.key == *key) {
            self.columns[id].last_used = decision;
            return ColumnId(id);
        }
        let mut column = Column {
            key: key.clone(),
            numbers: HashMap::new(),
            of_node: Vec::new(),
            last_used: decision,
        };
        for (node, labels) in nodes {
            column.set(node, Some(labels));
        }
        let oldest = (0..self.columns.len()).min_by_key(|id| self.columns[*id].last_used);
        let gives_way = oldest.filter(|id| {
            self.columns.len() >= MAX_COLUMNS && self.columns[*id].last_used < decision
        });
        match gives_way {
            Some(id) => {
                self.columns[id] = column;
                ColumnId(id)
            }
            None => {
                self.columns.push(column);
                ColumnId(self.columns.len() - 1)
            }
        }
    }

    /// The column of a label key, if it is numbered already.
    pub(crate) fn known_column(&self, key: &str) -> Option<ColumnId> {
        self.columns.iter().position(|column| &*column.key == key).map(ColumnId)
    }

    /// Takes note of a node's labels; none when the node is gone.
    pub(crate) fn set(&mut self, node: NodeIndex, labels: Option<&Labels>) {
        for column in &mut self.columns {
            column.set(node, labels);
        }
        // Values that came and went would pile up: a column with too many is numbered anew.
        self.columns.retain(|column| column.numbers.len() <= 2 * column.of_node.len() + 64);
    }

    /// The part that a node belongs to.
    pub(crate) fn part(&self, column: ColumnId, node: NodeIndex) -> Option<usize> {
        let number = *self.columns[column.0].of_node.get(node.0 as usize)?;
        (number != NO_VALUE).then_some(number as usize)
    }

    /// How many parts there are; the numbers are below.
    pub(crate) fn parts(&self, column: ColumnId) -> usize {
        self.columns[column.0].numbers.len()
    }
}

impl Column {
    fn set(&mut self, node: NodeIndex, labels: Option<&Labels>) {
        let number = match labels.and_then(|labels| labels.get(&*self.key)) {
            None => NO_VALUE,
            Some(value) => match self.numbers.get(value) {
                Some(number) => *number,
                None => {
                    // There are fewer values than nodes, and those are numbered with 32 bits.
                    let next = u32::try_from(self.numbers.len()).unwrap_or(NO_VALUE);
                    self.numbers.insert(value.clone(), next);
                    next
                }
            },
        };
        let index = node.0 as usize;
        if self.of_node.len() <= index {
            self.of_node.resize(index + 1, NO_VALUE);
        }
        self.of_node[index] = number;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> Labels {
        [("zone".to_owned(), name.to_owned())].into()
    }

    #[test]
    fn nodes_fall_into_parts() {
        let mut topology = Topology::default();
        let (a, b, none) = (zone("a"), zone("b"), Labels::new());
        let nodes =
            [(NodeIndex(0), &a), (NodeIndex(1), &b), (NodeIndex(3), &a), (NodeIndex(4), &none)];
        let zones = topology.column(&"zone".into(), nodes.into_iter());
        let parts =
            |topology: &Topology| [0, 1, 2, 3, 4].map(|n| topology.part(zones, NodeIndex(n)));
        assert_eq!(parts(&topology), [Some(0), Some(1), None, Some(0), None]);
        topology.set(NodeIndex(0), Some(&b));
        topology.set(NodeIndex(1), None);
        topology.set(NodeIndex(4), Some(&zone("c")));
        assert_eq!(parts(&topology), [Some(1), None, None, Some(0), Some(2)]);
        assert_eq!(topology.parts(zones), 3);
    }

    #[test]
    fn keys_and_values_do_not_pile_up() {
        let mut topology = Topology::default();
        for number in 0..1000 {
            topology.begin_decision();
            let key: Arc<str> = format!("key-{number}").into();
            let id = topology.column(&key, std::iter::empty());
            assert_eq!(
                topology.column(&"zone".into(), std::iter::empty()),
                topology.column(&"zone".into(), std::iter::empty())
            );
            assert_eq!(topology.columns[id.0].key, key);
            topology.set(NodeIndex(0), Some(&zone(&number.to_string())));
        }
        assert!(topology.columns.len() <= MAX_COLUMNS);
        assert!(topology.columns.iter().all(|column| column.numbers.len() < 100));
    }
}
