//! The flags of the commands for images.

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Show only the IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// How to show the list
    #[arg(long, value_enum, default_value = "table")]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    Table,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = REFERENCES)]
pub struct PullArgs {
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
    /// The image
    pub image: String,
}

#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Remove an image given by its ID even if it has several names
    #[arg(short, long)]
    pub force: bool,
    /// Images, by name or ID
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

const REFERENCES: &str = "\
An image is one of
  NAME[:TAG|@DIGEST]    from the store, or from a registry: REGISTRY/NAME
  oci:DIR[:TAG]         a directory in the OCI image layout
  oci-archive:FILE      the same in a tar archive
  docker-archive:FILE   what 'docker save' writes";
