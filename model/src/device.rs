//! Devices by name, and the engine on each.
//!
//! `cpu` is always there. `cuda:N` and `wgpu:N` are cargo features; asking for one that is not compiled in,
//! or whose hardware is absent, is an error that says so. `auto` takes CUDA before WebGPU before the CPU.

use std::{fmt, str::FromStr};

use burn::backend::Autodiff;
use burn_flex::{Flex, FlexDevice};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::kernels::Kernels;
use crate::{
    engine::{EngineConfig, EngineError, StageEngine},
    trainer::Trainer,
};

/// Names the device an engine runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The best that is compiled in and present.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU by its index in the driver.
    Cuda(usize),
    /// A WebGPU adapter: discrete GPUs are counted first, then integrated ones, virtual ones and software
    /// adapters.
    Wgpu(usize),
}

/// Says why a text is not a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device is {got:?}, expected auto, cpu, cuda:N or wgpu:N")]
pub struct ParseDeviceError {
    /// The text.
    pub got: String,
}

/// Says why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The feature is not compiled in.
    #[error("device {device} needs the cargo feature `{feature}`, which this build does not have")]
    NotCompiled {
        /// The device asked for.
        device: Device,
        /// The feature that has it.
        feature: &'static str,
    },
    /// There is no such device.
    #[error("device {device} was not found, expected an index below {found}")]
    NotFound {
        /// The device asked for.
        device: Device,
        /// Devices of this kind.
        found: usize,
    },
    /// The driver refused.
    #[error("device {device} did not start: {message}")]
    Failed {
        /// The device asked for.
        device: Device,
        /// What the driver or the tensor library said.
        message: String,
    },
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseDeviceError { got: text.to_owned() };
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Cpu),
            Some(("cuda", index)) => index.parse().map(Self::Cuda).map_err(|_| error()),
            Some(("wgpu", index)) => index.parse().map(Self::Wgpu).map_err(|_| error()),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Cpu => formatter.write_str("cpu"),
            Self::Cuda(index) => write!(formatter, "cuda:{index}"),
            Self::Wgpu(index) => write!(formatter, "wgpu:{index}"),
        }
    }
}

impl Device {
    /// Returns the device that `auto` stands for here and now; other devices are returned as they are.
    #[must_use]
    pub fn resolve(self) -> Self {
        match self {
            Self::Auto if cuda::count() > 0 => Self::Cuda(0),
            Self::Auto if wgpu::gpu_count() > 0 => Self::Wgpu(0),
            Self::Auto => Self::Cpu,
            named => named,
        }
    }
}

/// Builds an engine with its initial weights on a device.
///
/// # Errors
/// When the config breaks a rule, or the device is not compiled in, absent or broken.
pub fn build_engine(config: &EngineConfig, device: &Device) -> Result<Box<dyn StageEngine>, EngineError> {
    match device.resolve() {
        Device::Auto | Device::Cpu => Ok(Box::new(Trainer::<Autodiff<Flex>>::new(config, FlexDevice)?)),
        Device::Cuda(index) => cuda::build(config, index),
        Device::Wgpu(index) => wgpu::build(config, index),
    }
}

/// Runs a driver call that may panic, and returns the panic's message.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_else(|| "the tensor library panicked".to_owned())
    })
}

/// Builds an engine on a device of a probed kind and takes a first reading from it.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn build_guarded<B>(
    config: &EngineConfig,
    device: Device,
    handle: B::Device,
) -> Result<Box<dyn StageEngine>, EngineError>
where
    B: burn::tensor::backend::AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
    B::Device: fmt::Debug,
{
    let build = || -> Result<Trainer<B>, EngineError> {
        let mut trainer = Trainer::<B>::new(config, handle)?;
        // The first reading is what starts a lazy driver.
        trainer.weights()?;
        Ok(trainer)
    };
    match guarded(build) {
        Ok(trainer) => Ok(Box::new(trainer?)),
        Err(message) => Err(DeviceError::Failed { device, message }.into()),
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use burn::{backend::Autodiff, tensor::backend::Backend};
    use burn_cuda::{Cuda, CudaDevice};

    use super::{Device, DeviceError, EngineConfig, EngineError, StageEngine, build_guarded, guarded};

    pub(super) fn count() -> usize {
        guarded(|| Cuda::<f32, i32>::device_count(0)).unwrap_or(0)
    }

    pub(super) fn build(config: &EngineConfig, index: usize) -> Result<Box<dyn StageEngine>, EngineError> {
        let (device, found) = (Device::Cuda(index), count());
        if index >= found {
            return Err(DeviceError::NotFound { device, found }.into());
        }
        build_guarded::<Autodiff<Cuda<f32, i32>>>(config, device, CudaDevice::new(index))
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::{Device, DeviceError, EngineConfig, EngineError, StageEngine};

    pub(super) fn count() -> usize {
        0
    }

    pub(super) fn build(_: &EngineConfig, index: usize) -> Result<Box<dyn StageEngine>, EngineError> {
        Err(DeviceError::NotCompiled { device: Device::Cuda(index), feature: "cuda" }.into())
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use burn::{backend::Autodiff, tensor::backend::Backend};
    use burn_wgpu::{Wgpu, WgpuDevice};

    use super::{Device, DeviceError, EngineConfig, EngineError, StageEngine, build_guarded, guarded};

    /// Returns the adapters that are hardware.
    pub(super) fn gpu_count() -> usize {
        adapters().into_iter().filter(|adapter| *adapter != WgpuDevice::Cpu).count()
    }

    pub(super) fn build(config: &EngineConfig, index: usize) -> Result<Box<dyn StageEngine>, EngineError> {
        let adapters = adapters();
        let device = Device::Wgpu(index);
        match adapters.get(index) {
            Some(adapter) => build_guarded::<Autodiff<Wgpu<f32, i32>>>(config, device, adapter.clone()),
            None => Err(DeviceError::NotFound { device, found: adapters.len() }.into()),
        }
    }

    /// Lists adapters in the order of [`Device::Wgpu`]; the numbers are the tensor library's ids of adapter
    /// types.
    fn adapters() -> Vec<WgpuDevice> {
        let count = |kind: u16| guarded(|| Wgpu::<f32, i32>::device_count(kind)).unwrap_or(0);
        let mut adapters: Vec<WgpuDevice> = (0..count(0)).map(WgpuDevice::DiscreteGpu).collect();
        adapters.extend((0..count(1)).map(WgpuDevice::IntegratedGpu));
        adapters.extend((0..count(2)).map(WgpuDevice::VirtualGpu));
        adapters.extend((0..count(3)).map(|_| WgpuDevice::Cpu));
        adapters
    }
}

#[cfg(not(feature = "wgpu"))]
mod wgpu {
    use super::{Device, DeviceError, EngineConfig, EngineError, StageEngine};

    pub(super) fn gpu_count() -> usize {
        0
    }

    pub(super) fn build(_: &EngineConfig, index: usize) -> Result<Box<dyn StageEngine>, EngineError> {
        Err(DeviceError::NotCompiled { device: Device::Wgpu(index), feature: "wgpu" }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Wgpu(12)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
    }

    #[test]
    fn other_names_are_refused_with_what_was_expected() {
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "wgpu:x", "cpu:0"] {
            let error = text.parse::<Device>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("device is {text:?}, expected auto, cpu, cuda:N or wgpu:N")
            );
        }
    }
}
