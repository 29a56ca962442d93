//! The store of a build without the feature `redis`: there is none. The configuration refuses
//! `[store] kind = "redis"` there, so no value of these types is ever made.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tls_sessiond_core::{
    cache::{Ask, Found, NotStored, PendingPut, PoolSearch, revocation::Selector},
    clock::{Clock, WallTime},
    fleet::{Failure, FleetStore},
    session::{Miss, RemovalReason},
    state::CoreState,
};
use tls_sessiond_store::script::{Answer, Request};
use tokio::sync::Notify;

use crate::config::{Config, ConfigError, StoreConfig};

/// See the module of the same name in a build with the feature.
#[derive(Debug)]
pub struct NoTarget(Infallible);

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoCheckError {
    /// Never.
    #[error("this build has no feature `redis`")]
    Open(Infallible),
}

impl NoCheckError {
    /// Never called.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Open(never) => match *never {},
        }
    }

    /// Never called.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Open(never) => match *never {},
        }
    }
}

impl NoTarget {
    /// Refuses, because this build cannot connect.
    ///
    /// # Errors
    /// Always.
    pub fn read(config: &Config, _: &StoreConfig) -> Result<Self, ConfigError> {
        Err(config.store_error("kind", "this build has no feature `redis`"))
    }
}

/// Why a revocation is in force at this daemon alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotRevokedHere {
    /// Never.
    Away,
    /// Never.
    TooMany,
}

/// See the module of the same name in a build with the feature.
#[derive(Debug)]
pub struct NoStore(Infallible);

#[allow(clippy::unused_async, reason = "as with the feature")]
impl NoStore {
    /// Never called.
    pub fn new(_: Arc<FleetStore>, target: NoTarget, _: Duration, _: Clock) -> Self {
        match target.0 {}
    }

    /// Never called.
    pub fn fleet(&self) -> &Arc<FleetStore> {
        match self.0 {}
    }

    /// Never called.
    pub fn retarget(&self, _: NoTarget) {
        match self.0 {}
    }

    /// Never called.
    pub fn address(&self) -> String {
        match self.0 {}
    }

    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn check(&self) -> Result<Vec<String>, NoCheckError> {
        match self.0 {}
    }

    pub(crate) async fn ask(&self, _: &Request) -> Result<Answer, Failure> {
        match self.0 {}
    }

    pub(crate) async fn ask_patiently(&self, _: &Request) -> Result<Answer, Option<String>> {
        match self.0 {}
    }

    pub(crate) async fn find(&self, _: Box<Ask>) -> Result<Found, Miss> {
        match self.0 {}
    }

    pub(crate) async fn explain(
        &self,
        _: Box<Ask>,
    ) -> Result<Found, (Miss, Option<RemovalReason>)> {
        match self.0 {}
    }

    pub(crate) async fn newest(&self, _: PoolSearch) -> Option<Found> {
        match self.0 {}
    }

    pub(crate) async fn revoke(
        &self,
        _: &CoreState,
        _: &[&str],
        _: &Selector,
        _: WallTime,
    ) -> Result<(), NotRevokedHere> {
        match self.0 {}
    }

    pub(crate) async fn put_all(&self, _: Vec<PendingPut>) {
        match self.0 {}
    }

    pub(crate) async fn put(&self, _: PendingPut) -> Result<(), NotStored> {
        match self.0 {}
    }
}

/// See the module of the same name in a build with the feature.
#[derive(Debug)]
pub struct NoKeepers(Infallible);

#[allow(clippy::unused_async, reason = "as with the feature")]
impl NoKeepers {
    /// Never called.
    pub fn new(store: Arc<NoStore>, _: Arc<CoreState>, _: Clock, _: Arc<Notify>) -> Self {
        match store.0 {}
    }

    /// Never called.
    pub async fn open(&mut self, _: Duration) -> bool {
        match self.0 {}
    }

    /// Never called.
    pub async fn run(&mut self) {
        match self.0 {}
    }

    /// Never called.
    pub async fn stop(self) {
        match self.0 {}
    }
}
