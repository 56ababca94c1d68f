// A CUDA runtime and cuBLAS without a GPU, for LD_PRELOAD under a CUDA build of torch (stubs.c has what need not do a thing).
//
// Device memory is host memory and copies are made; kernels and products are only noted; streams, events, captures and
// graphs are books. So torch's own CUDA code runs - its checks, allocators, autograd's device thread, CUDAGraph - and the
// notes show what would have reached a GPU. rehearsal_note_to(path) begins the notes, with NULL it ends them. A line each:
//   MALLOC | FREE | HOSTALLOC bytes           memory of the device, pinned memory
//   COPY kind bytes pinned|PAGEABLE|- when    MEMSET bytes when      KERNEL name when      PRODUCT api when
//   SYNC call                                 the host waits for the device
//   CAPTURE begin|end|joins                   GRAPH launch nodes
//   VIOLATION what                            CUDA would refuse this while a stream captures
// "when" is now, captured, or ESCAPED: launched on another stream while one captures. One capture at a time is enough here.
#define _GNU_SOURCE
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *notes;

void rehearsal_note_to(const char *path) {
  pthread_mutex_lock(&lock);
  if (notes) fclose(notes);
  notes = path ? fopen(path, "w") : NULL;
  pthread_mutex_unlock(&lock);
}

static void note(const char *format, ...) {
  if (!notes) return;
  va_list values;
  va_start(values, format);
  pthread_mutex_lock(&lock);
  if (notes) {
    vfprintf(notes, format, values);
    fputc('\n', notes);
  }
  pthread_mutex_unlock(&lock);
  va_end(values);
}

// ---- streams and the capture

typedef struct {
  int mode;
  pthread_t thread;
  long nodes;
} Graph; // what a capture becomes; the only thing that is known of it is how much is in it

typedef struct {
  Graph *graph; // while it captures
  long given, joined; // captured work given to it, and as much of it as another stream has waited for
} Stream;

typedef struct {
  Stream *stream;
  Graph *graph;
  long given;
  struct timespec time;
} Event;

static Stream legacy, *streams[4096];
static int num_streams;
static Graph *capture;
static __thread int exchanged_mode = cudaStreamCaptureModeGlobal;

static Stream *stream_of(void *handle) { return (uintptr_t)handle <= 2 ? &legacy : handle; }

static const char *when(Stream *stream) { // and counts what is captured
  if (capture && stream->graph == capture) {
    capture->nodes++;
    stream->given++;
    return "captured";
  }
  return capture ? "ESCAPED" : "now";
}

static void forbidden(const char *call) { // calls that no capture allows in its thread ("thread_local") or in any ("global")
  if (capture && exchanged_mode != cudaStreamCaptureModeRelaxed &&
      (capture->mode == cudaStreamCaptureModeGlobal ||
          (capture->mode == cudaStreamCaptureModeThreadLocal && pthread_equal(capture->thread, pthread_self()))))
    note("VIOLATION %s", call);
}

static int waits(const char *call) {
  forbidden(call);
  note("SYNC %s", call);
  return 0;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  Stream *made = calloc(1, sizeof *made);
  if (num_streams < 4096) streams[num_streams++] = made;
  *stream = (void *)made;
  return 0;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreateWithPriority(stream, flags, 0); }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return forbidden("cudaStreamQuery"), 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waits("cudaStreamSynchronize"); }
cudaError_t cudaDeviceSynchronize(void) { return waits("cudaDeviceSynchronize"); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return waits("cudaEventSynchronize"); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, 0; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return *event = calloc(1, sizeof(Event)), 0; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), 0; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t handle, unsigned flags) {
  Stream *stream = stream_of(handle);
  *(Event *)event = (Event){stream, stream->graph, stream->given};
  clock_gettime(CLOCK_MONOTONIC, &((Event *)event)->time);
  return 0;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (capture && ((Event *)event)->graph == capture) note("VIOLATION cudaEventQuery of a captured event");
  return forbidden("cudaEventQuery"), 0;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
  struct timespec a = ((Event *)from)->time, b = ((Event *)to)->time;
  return *ms = (b.tv_sec - a.tv_sec) * 1e3f + (b.tv_nsec - a.tv_nsec) * 1e-6f, 0;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t waited, unsigned flags) {
  Event *event = (void *)waited;
  Stream *stream = stream_of(handle);
  if (capture && event->graph == capture) {
    if (stream == &legacy) note("VIOLATION the legacy stream joins a capture");
    if (stream->graph != capture) {
      stream->graph = capture;
      stream->given++;
      note("CAPTURE joins");
    }
    if (event->stream != stream && event->stream->joined < event->given) event->stream->joined = event->given;
  } else if (capture && stream->graph == capture && event->stream && event->stream != stream) {
    note("VIOLATION a capturing stream waits for an event outside of the capture");
  }
  return 0;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
  int old = exchanged_mode;
  return exchanged_mode = *mode, *mode = old, 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capture = calloc(1, sizeof *capture);
  *capture = (Graph){mode, pthread_self()};
  stream_of(stream)->graph = capture;
  note("CAPTURE begin");
  return 0;
}
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t *nodes,
    const cudaGraphEdgeData *edges, size_t count, enum cudaStreamCaptureMode mode) {
  return cudaStreamBeginCapture(stream, mode);
}
cudaError_t cudaStreamEndCapture(cudaStream_t origin, cudaGraph_t *graph) {
  for (int i = 0; i < num_streams; i++)
    if (streams[i]->graph == capture) {
      if (streams[i] != stream_of(origin) && streams[i]->joined < streams[i]->given) note("VIOLATION a stream joined, and was not joined again");
      streams[i]->graph = NULL;
    }
  legacy.graph = NULL;
  *graph = (void *)capture;
  capture = NULL;
  note("CAPTURE end");
  return 0;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  return *status = capture && stream_of(stream)->graph == capture ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, 0;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
    cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
  cudaStreamIsCapturing(stream, status);
  if (id) *id = (uintptr_t)capture;
  if (graph) *graph = (void *)capture;
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (count) *count = 0;
  return 0;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags) {
  return *ready = (void *)graph, 0;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) { return note("GRAPH launch %ld", ((Graph *)graph)->nodes), 0; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) { return *count = ((Graph *)graph)->nodes, 0; }
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t *nodes, cudaGraphEdgeData *edges, size_t *count) {
  return *count = 0, 0;
}
cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *of, cudaHostFn_t end, unsigned count, unsigned flags) {
  return *object = (void *)1, 0;
}

// ---- memory

typedef struct {
  uintptr_t start;
  size_t bytes;
  enum cudaMemoryType type;
} Block;
static Block *blocks;
static int num_blocks;
static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;

static int remember(void *start, size_t bytes, enum cudaMemoryType type) {
  pthread_mutex_lock(&blocks_lock);
  if (num_blocks % 1024 == 0) blocks = realloc(blocks, (num_blocks + 1024) * sizeof *blocks);
  blocks[num_blocks++] = (Block){(uintptr_t)start, bytes, type};
  pthread_mutex_unlock(&blocks_lock);
  return 0;
}
static Block block_of(const void *at, int forget) {
  Block found = {0};
  pthread_mutex_lock(&blocks_lock);
  for (int i = 0; i < num_blocks && !found.start; i++)
    if ((uintptr_t)at - blocks[i].start < blocks[i].bytes) {
      found = blocks[i];
      if (forget) blocks[i] = blocks[--num_blocks];
    }
  pthread_mutex_unlock(&blocks_lock);
  return found;
}
cudaError_t cudaMalloc(void **start, size_t bytes) {
  forbidden("cudaMalloc");
  note("MALLOC %zu", bytes);
  size_t whole = (bytes + 4095) & ~(size_t)4095;
  *start = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return *start == MAP_FAILED ? cudaErrorMemoryAllocation : remember(*start, whole, cudaMemoryTypeDevice);
}
cudaError_t cudaFree(void *start) {
  if (!start) return 0;
  forbidden("cudaFree");
  Block block = block_of(start, 1);
  note("FREE %zu", block.bytes);
  if (block.start) munmap(start, block.bytes);
  return 0;
}
cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
  forbidden("cudaHostAlloc");
  note("HOSTALLOC %zu", bytes);
  return posix_memalign(start, 4096, bytes + 1) ? cudaErrorMemoryAllocation : remember(*start, bytes + 1, cudaMemoryTypeHost);
}
cudaError_t cudaFreeHost(void *start) { return block_of(start, 1), free(start), 0; }
cudaError_t cudaHostRegister(void *start, size_t bytes, unsigned flags) { return remember(start, bytes, cudaMemoryTypeHost); }
cudaError_t cudaHostUnregister(void *start) { return block_of(start, 1), 0; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *at) {
  enum cudaMemoryType type = block_of(at, 0).type;
  *found = (struct cudaPointerAttributes){.type = type};
  if (type != cudaMemoryTypeUnregistered) found->devicePointer = (void *)at;
  if (type == cudaMemoryTypeHost) found->hostPointer = (void *)at;
  return 0;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { return *available = 79ull << 30, *total = 80ull << 30, 0; }

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  const char *kinds[] = {"H2H", "H2D", "D2H", "D2D", "DEFAULT"};
  const void *host = kind == cudaMemcpyHostToDevice ? from : kind == cudaMemcpyDeviceToHost ? to : NULL;
  int pageable = host && block_of(host, 0).type != cudaMemoryTypeHost;
  const char *moment = when(stream_of(stream));
  if (pageable && *moment == 'c') note("VIOLATION a pageable copy is captured");
  note("COPY %s %zu %s %s", kinds[kind], bytes, pageable ? "PAGEABLE" : host ? "pinned" : "-", moment);
  memmove(to, from, bytes);
  return 0;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
  cudaMemcpyAsync(to, from, bytes, kind, 0);
  return waits("cudaMemcpy");
}
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
  note("MEMSET %zu %s", bytes, when(stream_of(stream)));
  memset(start, value, bytes);
  return 0;
}
cudaError_t cudaMemset(void *start, int value, size_t bytes) { return cudaMemsetAsync(start, value, bytes, 0); }
static char symbols[1 << 16];
cudaError_t cudaGetSymbolAddress(void **start, const void *symbol) { return *start = symbols, 0; }

// ---- kernels: libraries register them by name when they are loaded

static struct {
  const void *function;
  const char *name;
} kernels[1 << 20];
static unsigned place_of(const void *function) {
  unsigned place = (uintptr_t)function * 0x9E3779B97F4A7C15ull >> 44;
  while (kernels[place].function && kernels[place].function != function) place = (place + 1) % (1 << 20);
  return place;
}
void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[4];
  return handle;
}
void __cudaRegisterFunction(void **handle, const char *function, char *device_name, const char *name, int limit, uint3 *tid,
    uint3 *bid, dim3 *block, dim3 *grid, int *size) {
  pthread_mutex_lock(&lock);
  unsigned place = place_of(function);
  kernels[place].function = function;
  kernels[place].name = name;
  pthread_mutex_unlock(&lock);
}
static __thread struct {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  return *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(cudaStream_t *)stream = pushed.stream, 0;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) { return *kernel = (void *)function, 0; }
cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream) {
  const char *name = kernels[place_of(function)].name;
  note("KERNEL %s %s", name ? name : "?", when(stream_of(stream)));
  return 0;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **values, size_t shared, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, values, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **values) {
  return cudaLaunchKernel(function, config->gridDim, config->blockDim, values, 0, config->stream);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *value) { return function(value), 0; }
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *value, unsigned flags) {
  return function(stream, 0, value), 0;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  *found = (struct cudaFuncAttributes){.maxThreadsPerBlock = 1024, .numRegs = 32, .binaryVersion = 90, .ptxVersion = 90};
  return found->maxDynamicSharedSizeBytes = 227 << 10, 0;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) {
  return *n = block ? 2048 / block : 1, 0;
}

// ---- the device: what an H100 says of itself, as far as torch asks

static __thread int current;
cudaError_t cudaGetDeviceCount(int *count) {
  const char *wanted = getenv("REHEARSAL_DEVICES");
  return *count = wanted ? atoi(wanted) : 1, 0;
}
cudaError_t cudaGetDevice(int *device) { return *device = current, 0; }
cudaError_t cudaSetDevice(int device) { return current = device, 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  *found = (struct cudaDeviceProp){.name = "pretended H100", .totalGlobalMem = 80ull << 30, .sharedMemPerBlock = 48 << 10,
      .regsPerBlock = 65536, .warpSize = 32, .maxThreadsPerBlock = 1024, .maxThreadsDim = {1024, 1024, 64},
      .maxGridSize = {2147483647, 65535, 65535}, .totalConstMem = 65536, .major = 9, .textureAlignment = 512,
      .multiProcessorCount = 132, .canMapHostMemory = 1, .concurrentKernels = 1, .unifiedAddressing = 1,
      .memoryBusWidth = 5120, .l2CacheSize = 50 << 20, .maxThreadsPerMultiProcessor = 2048, .streamPrioritiesSupported = 1,
      .sharedMemPerMultiprocessor = 228 << 10, .regsPerMultiprocessor = 65536, .managedMemory = 1, .cooperativeLaunch = 1,
      .sharedMemPerBlockOptin = 227 << 10, .maxBlocksPerMultiProcessor = 32, .asyncEngineCount = 3};
  return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device) {
  switch (name) {
  case cudaDevAttrMultiProcessorCount: *value = 132; break;
  case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
  case cudaDevAttrWarpSize: *value = 32; break;
  case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 << 10; break;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
  case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
  case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
  case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
  case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
  case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
  case cudaDevAttrMaxBlocksPerMultiprocessor: *value = 32; break;
  case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
  case cudaDevAttrClockRate: *value = 1755000; break;
  case cudaDevAttrMemoryClockRate: *value = 2619000; break;
  case cudaDevAttrGlobalMemoryBusWidth: *value = 5120; break;
  case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: case cudaDevAttrCooperativeLaunch: *value = 1; break;
  default: *value = 0;
  }
  return 0;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) { return snprintf(id, length, "0000:0%d:00.0", device), 0; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, 0; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, 0; }
const char *cudaGetErrorName(cudaError_t error) { return "pretended"; }
const char *cudaGetErrorString(cudaError_t error) { return "an error of the pretended CUDA runtime"; }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { return *pool = (void *)1, 0; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr name, void *value) { return *(uint64_t *)value = 0, 0; }
static int unsupported(void) { return cudaErrorNotSupported; }
static int context_state(int device, unsigned *flags, int *active) { return *flags = 0, *active = 1, 0; }
cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
  *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)unsupported : (void *)context_state;
  if (found) *found = cudaDriverEntryPointSuccess;
  return 0;
}

// ---- cuBLAS: products are noted on the stream that was set last

static __thread Stream *blas = &legacy;
static int math_mode, pointer_mode;
static int product(const char *api) { return note("PRODUCT %s %s", api, when(blas)), 0; }

cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) { return forbidden("cublasCreate"), *handle = calloc(1, 64), 0; }
cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) { return blas = stream_of(stream), 0; }
cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) { return math_mode = mode, 0; }
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) { return *mode = math_mode, 0; }
cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) { return pointer_mode = mode, 0; }
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) { return *mode = pointer_mode, 0; }
#define SINGLE (math_mode == CUBLAS_TF32_TENSOR_OP_MATH ? "tf32" : "fp32")
int rehearsal_sgemm(void) { return product(SINGLE); } // stubs.c gives it its many names: none looks at its arguments
int rehearsal_gemm_ex(void) { return product("mixed"); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *made, cudaDataType t, uint64_t r, uint64_t c, int64_t ld) {
  return *made = calloc(1, 64), 0;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return free(layout), 0; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *made, cublasComputeType_t compute, cudaDataType_t type) {
  return *made = calloc(1, 64), *(int *)*made = compute, 0;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t made) { return free(made), 0; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *made) { return *made = calloc(1, 64), 0; }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t made) { return free(made), 0; }
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
    cublasLtMatmulHeuristicResult_t *found, int *count) {
  return memset(found, 0, sizeof *found), *count = 1, 0;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha, const void *a,
    cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta, const void *c, cublasLtMatrixLayout_t lc,
    void *d, cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algorithm, void *space, size_t bytes, cudaStream_t stream) {
  blas = stream_of(stream);
  return product(*(int *)description == CUBLAS_COMPUTE_32F_FAST_TF32 ? "tf32" : "fp32");
}
