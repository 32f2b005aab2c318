//! Matrix products on GPUs that round no factor.
//!
//! The tensor library multiplies on tensor cores wherever there are some, and these round `f32` to TF32. The kernel
//! here multiplies in the ordinary units, tile by tile. Which kernel runs depends on shapes, layouts and the device
//! only, so that the same product has the same bits again.

use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement,
    kernel::matmul::utils::init_matmul_output, tensor::CubeTensor,
};
use cubek::{
    matmul::{
        definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError},
        launch::{Strategy, launch_ref},
    },
    std::InputBinding,
};

/// As [`super::Derivatives::matmul_highest`].
///
/// # Panics
/// When the device cannot run the simplest of kernels; those who build an engine catch it.
pub(super) fn matmul_highest<R, F, I, BT, const D: usize>(
    lhs: Tensor<CubeBackend<R, F, I, BT>, D>,
    rhs: Tensor<CubeBackend<R, F, I, BT>, D>,
) -> Tensor<CubeBackend<R, F, I, BT>, D>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (lhs, rhs) = (lhs.into_primitive().tensor(), rhs.into_primitive().tensor());
    let output = init_matmul_output(&lhs, &rhs, DType::F32);
    launch(&Strategy::SimpleUnit(Default::default()), &lhs, &rhs, &output)
        .or_else(|_| launch(&Strategy::Naive, &lhs, &rhs, &output))
        .expect("a product of one unit per element needs nothing that a device may lack");
    Tensor::from_primitive(TensorPrimitive::Float(output))
}

/// Starts a kernel, unless the device cannot run it for these shapes.
fn launch<R: CubeRuntime>(
    strategy: &Strategy,
    lhs: &CubeTensor<R>,
    rhs: &CubeTensor<R>,
    output: &CubeTensor<R>,
) -> Result<(), MatmulSetupError> {
    let input = |tensor: &CubeTensor<R>| InputBinding::new(tensor.clone().binding(), DType::F32.into());
    let globals =
        MatmulGlobalElems { lhs: DType::F32.into(), rhs: DType::F32.into(), out: DType::F32.into() };
    let mut elements = MatmulElems::from_globals(&globals);
    launch_ref(strategy, &output.client, input(lhs), input(rhs), output.clone().binding(), &mut elements)
}
