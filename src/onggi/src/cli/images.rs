//! The flags of the commands for images.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::format::{Format, Template};

/// The commands of one word.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Show how an image was made
    History(HistoryArgs),
    /// List the images in the store
    Images(ImagesArgs),
    /// Fetch an image into the store
    Pull(PullArgs),
    /// Bring the images of an archive into the store
    Load(LoadArgs),
    /// Log in to a registry, and keep the credentials where Docker does
    Login(LoginArgs),
    /// Forget the credentials for a registry
    Logout(LogoutArgs),
    /// Send an image to its registry
    Push(PushArgs),
    /// Remove images from the store
    Rmi(RmiArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Give an image another name
    Tag(TagArgs),
}

/// The commands below `onggi image`.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum ImageCommand {
    /// Show how an image was made
    History(HistoryArgs),
    /// Show everything that is known of images
    Inspect(InspectImageArgs),
    /// List the images in the store
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Bring the images of an archive into the store
    Load(LoadArgs),
    /// Remove images that no container has
    Prune(PruneImagesArgs),
    /// Fetch an image into the store
    Pull(PullArgs),
    /// Send an image to its registry
    Push(PushArgs),
    /// Remove images from the store
    #[command(visible_alias = "remove")]
    Rm(RmiArgs),
    /// Write images to an archive
    Save(SaveArgs),
    /// Give an image another name
    Tag(TagArgs),
}

/// `onggi system …`.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub enum SystemCommand {
    /// Show what images, containers and volumes take on disk
    Df(DfArgs),
    /// Remove what nobody uses
    Prune(SystemPruneArgs),
}

#[derive(Debug, Args)]
pub struct DfArgs {
    /// How to show it: 'table', 'json', or a template such as '{{.Type}}: {{.Size}}'
    #[arg(long, default_value = "table")]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct SystemPruneArgs {
    /// Images with names, too
    #[arg(short, long)]
    pub all: bool,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
    /// Volumes without a name, too
    #[arg(long)]
    pub volumes: bool,
}

#[derive(Debug, Args)]
pub struct PruneImagesArgs {
    /// Images with names, too
    #[arg(short, long)]
    pub all: bool,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// How to show the list: 'table', 'json', or a template such as '{{.CreatedBy}}'
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Show IDs and commands in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Show only the IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// The image, by name or ID
    pub image: String,
}

#[derive(Debug, Args)]
pub struct InspectImageArgs {
    /// Show what a template asks for, such as '{{.Architecture}}', or 'json' for all on one line
    #[arg(short, long)]
    pub format: Option<Template>,
    /// Images, by name or ID
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Accepted for Docker's sake: there are no images that would be hidden
    #[arg(short, long)]
    pub all: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// Show only images of which this is true: dangling=BOOL, label=NAME[=VALUE], reference=PATTERN,
    /// before=IMAGE or since=IMAGE
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub filter: Vec<String>,
    /// How to show the list: 'table', 'json', or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Show IDs and digests in full
    #[arg(long)]
    pub no_trunc: bool,
    /// Show only the IDs
    #[arg(short, long)]
    pub quiet: bool,
    /// Show only images of this name; '*' stands for anything
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
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
pub struct PushArgs {
    /// Send every tag of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Print nothing but the name
    #[arg(short, long)]
    pub quiet: bool,
    /// The image, by the name of the registry's repository
    #[arg(value_name = "NAME[:TAG]")]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Images, by name or ID
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Read from a file instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Name of the user
    #[arg(short, long)]
    pub username: Option<String>,
    /// Password, or a token that serves as one
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    pub password_stdin: bool,
    /// Host name of the registry [default: Docker Hub]
    pub registry: Option<String>,
}

#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Host name of the registry [default: Docker Hub]
    pub registry: Option<String>,
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// The image, by name or ID
    #[arg(value_name = "SOURCE_IMAGE")]
    pub source: String,
    /// The name that it is to have as well
    #[arg(value_name = "TARGET_NAME[:TAG]")]
    pub target: String,
}

#[derive(Debug, Args)]
pub struct RmiArgs {
    /// Remove an image even if a container has it, or if its ID is given and it has several names
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
