use super::{ListId, PageQuery, SpaceToken};

/// Which upstream credential a page was read with: given out once in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialId(pub u32);

/// A space as one credential sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpaceKey {
    pub credential: CredentialId,
    pub space: SpaceToken,
}

/// A list as one credential sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListKey {
    pub space: SpaceKey,
    pub id: ListId,
}

/// What a page is kept under. Nothing of a client's is part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PageKey {
    pub list: ListKey,
    pub query: PageQuery,
}

impl PageKey {
    /// Another page of the same list.
    #[must_use]
    pub fn at(&self, query: PageQuery) -> Self {
        Self {
            list: self.list.clone(),
            query,
        }
    }
}
