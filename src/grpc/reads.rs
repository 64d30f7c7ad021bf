//! Reads of inventories, lists of inventories, and desync reports.

use super::page_token;
use super::read_authorization;
use super::service::{Service, identity};
use crate::domain::{Inventory, InventoryId};
use crate::status;
use crate::store::{ListPage, ListQuery};
use crate::wire::{FieldViolation, reply, request, v1};
use std::sync::Arc;
use tonic::{Request, Status};

const PAGE_SIZE_DEFAULT: u32 = 100;
pub const PAGE_SIZE_MAX: u32 = 1_000;

impl Service {
    pub(super) async fn read(
        &self,
        request: &Request<v1::GetInventoryRequest>,
    ) -> Result<v1::GetInventoryResponse, Status> {
        let found = self.find(request).await?;
        let inventory = Some(reply::inventory(self.engine.catalog(), &found));
        Ok(v1::GetInventoryResponse { inventory })
    }

    /// Returns the inventory that a caller requests, if the caller may read it.
    pub(super) async fn find(&self, request: &Request<v1::GetInventoryRequest>) -> Result<Arc<Inventory>, Status> {
        let id = request::inventory_id("inventory_id", &request.get_ref().inventory_id)
            .map_err(|violation| status::invalid_field(&violation))?;
        let identity = identity(request)?;
        let found = self.engine.read(&id).await.map_err(|error| status::engine_error(&error))?;
        read_authorization::authorize_read(identity, &id, found.as_deref())?;
        found.ok_or_else(|| status::inventory_not_found(&id))
    }

    pub(super) async fn list(
        &self,
        request: &Request<v1::ListInventoriesRequest>,
    ) -> Result<v1::ListInventoriesResponse, Status> {
        let query = list_query(request.get_ref()).map_err(|violation| status::invalid_field(&violation))?;
        read_authorization::authorize_list(identity(request)?, query.owner.as_ref())?;
        let limit = query.limit;
        // One inventory more than requested shows whether there is another page.
        let query = ListQuery { limit: limit + 1, ..query };
        let page = self.engine.list(query.clone()).await.map_err(|error| status::engine_error(&error))?;
        let ListPage { inventories: mut found, next } = page;
        let has_more = found.len() > limit;
        found.truncate(limit);
        let next = if has_more { found.last().map(|last| &last.id) } else { next.as_ref() };
        let token = |next: &InventoryId| page_token::write(query.owner.as_ref(), &query.prefix, next);
        let next_page_token = next.map(token).unwrap_or_default();
        let inventories = found.iter().map(|inventory| reply::summary(inventory)).collect();
        Ok(v1::ListInventoriesResponse { inventories, next_page_token })
    }

    /// Logs the report, and corrects the reader's copy with its next frame.
    pub(super) async fn handle_desync_report(
        &self,
        request: Request<v1::ReportDesyncRequest>,
    ) -> Result<v1::ReportDesyncResponse, Status> {
        let identity = identity(&request)?.clone();
        let v1::ReportDesyncRequest { session, have } = request.into_inner();
        let v1::InventoryVersion { inventory_id, epoch, revision, digest } = have.unwrap_or_default();
        let parse = || {
            let missing = || FieldViolation::new("session", "required; set it to the session of the subscription");
            let session = request::session("session", &session)?.ok_or_else(missing)?;
            Ok((request::inventory_id("have.inventory_id", &inventory_id)?, session))
        };
        let (id, session) = parse().map_err(|violation| status::invalid_field(&violation))?;
        let found = self.engine.read(&id).await.map_err(|error| status::engine_error(&error))?;
        read_authorization::authorize_read(&identity, &id, found.as_deref())?;
        let current = self.engine.correct(session.clone(), identity.caller, id.clone()).await;
        let current = current.map_err(|error| status::engine_error(&error))?;
        let current = current.ok_or_else(|| status::inventory_not_found(&id))?;
        self.streams.statistics.add_desync_reported();
        let hexadecimal = |a: u32, b: u32| format!("{a:08x}{b:08x}");
        tracing::warn!(
            %id,
            %session,
            epoch,
            revision,
            digest = digest.map(|digest| hexadecimal(digest.a, digest.b)),
            current_epoch = current.epoch.get(),
            current_revision = current.revision.0,
            current_digest = hexadecimal(current.digest.a, current.digest.b),
            "desync reported"
        );
        Ok(v1::ReportDesyncResponse { current: Some(reply::version(&current)) })
    }
}

fn list_query(request: &v1::ListInventoriesRequest) -> Result<ListQuery, FieldViolation> {
    let limit = match request.page_size {
        0 => PAGE_SIZE_DEFAULT,
        1..=PAGE_SIZE_MAX => request.page_size,
        _ => {
            let text = format!("must be at most {PAGE_SIZE_MAX}, got {}", request.page_size);
            return Err(FieldViolation::new("page_size", text));
        }
    };
    if request.prefix.len() > InventoryId::BYTES_MAX {
        let text = format!("must have at most {} bytes, got {}", InventoryId::BYTES_MAX, request.prefix.len());
        return Err(FieldViolation::new("prefix", text));
    }
    let owner = request::owner("owner", &request.owner)?;
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(page_token::read(owner.as_ref(), &request.prefix, token).ok_or_else(|| {
            let text =
                "not a page token of this query; use next_page_token of the previous page with the same owner and prefix";
            FieldViolation::new("page_token", text)
        })?),
    };
    Ok(ListQuery { owner, prefix: request.prefix.clone(), after, limit: limit as usize })
}
