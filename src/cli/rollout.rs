//! `slotcast rollout`: shows and sets how streams are synced.

use super::call::failure::Failure;
use super::output::print;
use super::{ClientArgs, CommandResult};
use crate::sync::{OutOfBounds, RolloutField};
use crate::wire::rollout;
use crate::wire::v1;
use crate::wire::v1::admin_service_client::AdminServiceClient;
use clap::Subcommand;
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Map, Value};

/// Show or set how streams are synced: percentages of players per feature, windows, and limits.
///
/// A change applies from the next frame of every open stream and lasts until the next change, a restart, or a reload of
/// the settings file. To return to full syncs for every change, set `delta_percent=0`, `debounce_percent=0` and
/// `prediction_percent=0`.
#[derive(Debug, clap::Args)]
pub struct Rollout {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all values.
    Get {
        #[command(flatten)]
        client: ClientArgs,
        /// Print the values as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Set one or more values atomically.
    Set {
        /// Values to set, for example `delta_percent=50`. `slotcast rollout get` lists all keys.
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_value)]
        values: Vec<(RolloutField, u64)>,
        /// Reason for the change; the server logs it.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        client: ClientArgs,
        /// Print all values as JSON after the change.
        #[arg(long)]
        json: bool,
    },
}

impl Rollout {
    pub async fn run(self) -> CommandResult {
        let (client, json, values) = match self.action {
            Action::Get { client, json } => (client, json, None),
            Action::Set { values, reason, client, json } => (client, json, Some((values, reason))),
        };
        let mut admin = AdminServiceClient::new(client.client()?.channel());
        let failed = |status| Failure::new(status, &client.server);
        let rollout = match values {
            None => admin.get_rollout(v1::GetRolloutRequest {}).await.map_err(failed)?.into_inner().rollout,
            Some((values, reason)) => {
                let request = rollout::update(&reason, &values);
                admin.update_rollout(request).await.map_err(failed)?.into_inner().rollout
            }
        };
        let rollout = rollout::read_rollout(&rollout.unwrap_or_default());
        Ok(print(if json { as_json(&rollout).to_string() } else { as_table(&rollout) })?)
    }
}

fn parse_value(text: &str) -> Result<(RolloutField, u64), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=VALUE, such as delta_percent=50")?;
    let names = || RolloutField::ALL.map(RolloutField::name).join(", ");
    let name = name.trim();
    let field = RolloutField::from_name(name).ok_or_else(|| format!("unknown key {name}: use one of {}", names()))?;
    let value = value.trim().parse().map_err(|_| format!("{name}: not a whole number: {value:?}"))?;
    if !field.bounds().contains(&value) {
        return Err(OutOfBounds { field, value }.to_string());
    }
    Ok((field, value))
}

fn as_json(rollout: &[(RolloutField, u64)]) -> Value {
    Value::Object(
        rollout.iter().map(|(field, value)| (field.name().to_owned(), (*value).into())).collect::<Map<_, _>>(),
    )
}

fn as_table(rollout: &[(RolloutField, u64)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header(["setting", "value", "default"]);
    for (field, value) in rollout {
        table.add_row([field.name().to_owned(), value.to_string(), field.default_value().to_string()].map(Cell::new));
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_parsed_and_an_invalid_one_is_explained() {
        assert_eq!(parse_value("delta_percent=50"), Ok((RolloutField::DeltaPercent, 50)));
        assert_eq!(parse_value(" echo_ms = 7 "), Ok((RolloutField::EchoMs, 7)));
        for (text, expected) in [
            ("delta", "expected KEY=VALUE, such as delta_percent=50"),
            ("delta=50", "unknown key delta: use one of delta_percent, debounce_percent"),
            ("delta_percent=half", "delta_percent: not a whole number: \"half\""),
            ("delta_percent=101", "delta_percent: must be 0 to 100, got 101"),
        ] {
            let error = parse_value(text).expect_err("the value is invalid");
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
