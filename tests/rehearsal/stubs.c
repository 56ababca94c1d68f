// What the pretended CUDA runtime (runtime.c) answers with 0 without a look at its arguments; no header, since these have
// the wrong types on purpose. And libcuda.so.1, as far as torch asks for it without launching anything through the driver.
#define NOTHING(name) \
  int name(void) { return 0; }
#ifdef DRIVER
#define GIVES(name, type, value) \
  int name(type *found) { return *found = value, 0; }
NOTHING(cuInit) NOTHING(cuCtxSetCurrent) NOTHING(cuLaunchKernel)
GIVES(cuDriverGetVersion, int, 13000) GIVES(cuDeviceGetCount, int, 1) GIVES(cuCtxGetCurrent, void *, (void *)1)
GIVES(cuDevicePrimaryCtxRetain, void *, (void *)1) GIVES(cuModuleLoadData, void *, (void *)1)
GIVES(cuModuleGetFunction, void *, (void *)1) GIVES(cuOccupancyMaxActiveBlocksPerMultiprocessor, int, 4)
int cuGetErrorString(int error, const char **text) { return *text = "pretended", 0; }
int cuGetErrorName(int error, const char **text) { return *text = "pretended", 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
#else
#define IS(function, name) \
  int name(void) { return function(); }
int rehearsal_sgemm(void), rehearsal_gemm_ex(void);
IS(rehearsal_sgemm, cublasSgemm_v2) IS(rehearsal_sgemm, cublasSgemmStridedBatched) IS(rehearsal_sgemm, cublasSgemv_v2)
IS(rehearsal_sgemm, cublasSdot_v2) IS(rehearsal_gemm_ex, cublasGemmEx) IS(rehearsal_gemm_ex, cublasGemmStridedBatchedEx)
NOTHING(cublasDestroy_v2) NOTHING(cublasSetWorkspace_v2) NOTHING(cublasSetSmCountTarget)
NOTHING(cublasLtMatrixLayoutSetAttribute) NOTHING(cublasLtMatmulDescSetAttribute) NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(__cudaRegisterFatBinaryEnd) NOTHING(__cudaUnregisterFatBinary) NOTHING(__cudaRegisterVar)
NOTHING(cudaFuncSetAttribute) NOTHING(cudaMemcpyToSymbol) NOTHING(cudaMemPoolSetAttribute)
NOTHING(cudaGetLastError) NOTHING(cudaPeekAtLastError) NOTHING(cudaDeviceEnablePeerAccess)
NOTHING(cudaStreamDestroy) NOTHING(cudaStreamUpdateCaptureDependencies)
NOTHING(cudaGraphDestroy) NOTHING(cudaGraphExecDestroy) NOTHING(cudaUserObjectRelease) NOTHING(cudaGraphRetainUserObject)
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0; }
int cudaStreamGetPriority(void *stream, int *priority) { return *priority = 0; }
#endif
