//! `blindai policy measure`: what a measurement must be, from what is started, without starting it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::launch::{Guest, Hypervisor, Kernel, measurement};
use crate::{file, output};

#[derive(Subcommand)]
pub enum Tee {
    /// The launch measurement of an SEV-SNP guest, in hexadecimal.
    SevSnp(SevSnp),
}

/// What the hypervisor loads into the guest before it starts, and the state of its processors.
#[derive(Args)]
pub struct SevSnp {
    /// The firmware: an OVMF with SEV metadata
    #[arg(long, value_name = "FILE")]
    ovmf: PathBuf,
    /// The kernel, when the hypervisor starts it directly and the firmware checks its digest
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial disk
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    append: String,
    /// How many virtual processors the guest has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Their type as QEMU names it: EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa or EPYC-Turin, with any
    /// version (EPYC-v4)
    #[arg(long, value_name = "TYPE", value_parser = cpu_signature)]
    vcpu_type: u32,
    /// SEV_FEATURES, decimal or 0x…: bit 0 is SNP itself, bit 5 debug swap, which some kernels set
    #[arg(long, value_name = "BITS", default_value = "0x1", value_parser = bits)]
    guest_features: u64,
    /// Who starts the guest
    #[arg(long, value_name = "NAME", default_value = "qemu")]
    hypervisor: Hypervisor,
}

impl Tee {
    /// Prints the measurement.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn run(&self) -> Result<ExitCode> {
        let Tee::SevSnp(guest) = self;
        let measurement = guest.measurement()?;
        if guest.kernel.is_none() {
            output::warn(FIRMWARE_ONLY);
        }
        output::print(measurement);
        Ok(ExitCode::SUCCESS)
    }
}

impl SevSnp {
    fn measurement(&self) -> Result<String> {
        let read = |path: &Option<PathBuf>| {
            let bytes = path.as_ref().map(|path| file::read(path, FILE_BYTES));
            bytes.transpose()
        };
        let firmware = file::read(&self.ovmf, FILE_BYTES)?;
        let (image, initial_disk) = (read(&self.kernel)?, read(&self.initrd)?);
        let measured = measurement(&Guest {
            firmware: &firmware,
            kernel: image.as_ref().map(|image| Kernel {
                image,
                initial_disk: initial_disk.as_deref().unwrap_or_default(),
                command_line: &self.append,
            }),
            vcpus: self.vcpus,
            cpu_signature: self.vcpu_type,
            features: self.guest_features,
            hypervisor: self.hypervisor,
        });
        let named = || format!("{} cannot be measured", self.ovmf.display());
        Ok(hex::encode(measured.with_context(named)?))
    }
}

/// CPUID 1, EAX, of a type: what QEMU puts into RDX at the start.
fn cpu_signature(name: &str) -> Result<u32, &'static str> {
    let name = name.to_ascii_lowercase();
    let name = match name.rsplit_once("-v") {
        Some((base, version)) if version.parse::<u8>().is_ok() => base,
        _ => &name,
    };
    match name {
        "epyc" | "epyc-ibpb" => Ok(0x0080_0f12),
        "epyc-rome" => Ok(0x0083_0f10),
        "epyc-milan" => Ok(0x00a0_0f11),
        "epyc-genoa" => Ok(0x00a1_0f10),
        "epyc-turin" => Ok(0x00b0_0f00),
        _ => Err("write EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa or EPYC-Turin"),
    }
}

fn bits(text: &str) -> Result<u64, &'static str> {
    let bits = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    bits.map_err(|_| "write a number, decimal or 0x…")
}

const FIRMWARE_ONLY: &str = "WARNING: without --kernel this is the measurement of the firmware only: \
                             whatever the host boots has it";
/// Initial disks are large; what is larger than this is no initial disk.
const FILE_BYTES: u64 = 4 * 1024 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_the_signature_of_their_generation() {
        // Family 25, model 17, stepping 0, as the manual of CPUID packs them.
        assert_eq!(
            cpu_signature("EPYC-Genoa-v1"),
            Ok((10 << 20) | (1 << 16) | (15 << 8) | (1 << 4))
        );
        assert_eq!(cpu_signature("EPYC-v4"), cpu_signature("epyc"));
        assert!(cpu_signature("EPYC-Naples").is_err());
        assert!(cpu_signature("EPYC-v").is_err());
    }
}
