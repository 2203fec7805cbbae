// A fake camera at /dev/video0 for programs started with this library in LD_PRELOAD: the Video4Linux2 ioctls that
// stream frames through mapped memory, on an anonymous file. After CAMERA_FRAMES frames the camera is unplugged.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

// Pixels of a frame; bytes of a frame, a multiple of the page size; buffers; frames per second; bars of colour.
enum { kWidth = 64, kHeight = 64, kBytes = 2 * kWidth * kHeight, kBuffers = 8, kRate = 30, kBars = 4 };

// Y, U, V of grey, red, green and blue in BT.601.
constexpr unsigned char kColours[kBars][3] = {{126, 128, 128}, {81, 90, 240}, {145, 54, 34}, {41, 240, 110}};

struct {
  int file = -1;
  unsigned char* memory;
  unsigned buffers, waiting[kBuffers], first, last;
  long long start, delivered;
} camera;

long long now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int fail(int reason) {
  errno = reason;
  return -1;
}

void describe(v4l2_format* format) {
  format->fmt.pix = {
      .width = kWidth,
      .height = kHeight,
      .pixelformat = V4L2_PIX_FMT_YUYV,
      .field = V4L2_FIELD_NONE,
      .bytesperline = 2 * kWidth,
      .sizeimage = kBytes,
      .colorspace = V4L2_COLORSPACE_SRGB,
  };
}

// Draw bars of colour, which move 2 pixels to the left per frame.
void draw(unsigned char* frame, long long number) {
  for (int i = 0; i < kWidth * kHeight; i++) {
    const unsigned char* colour = kColours[(i + 2 * number) % kWidth * kBars / kWidth];
    frame[2 * i] = colour[0];
    frame[2 * i + 1] = colour[1 + i % 2];
  }
}

int dequeue(v4l2_buffer* buffer) {
  const char* frames = std::getenv("CAMERA_FRAMES");
  if (frames != nullptr && camera.delivered >= std::atoll(frames)) return fail(ENODEV);
  if (camera.first == camera.last) return fail(EAGAIN);
  const long long period = 1000000000LL / kRate;
  // A frame that nobody waited for is lost.
  const long long number = (now() - camera.start) / period + 1, due = camera.start + number * period;
  const timespec time = {due / 1000000000LL, due % 1000000000LL};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr) != 0) continue;
  const unsigned index = camera.waiting[camera.first++ % kBuffers];
  draw(camera.memory + index * kBytes, number);
  camera.delivered++;
  buffer->index = index;
  buffer->bytesused = kBytes;
  buffer->sequence = number;
  buffer->timestamp.tv_sec = due / 1000000000LL;
  buffer->timestamp.tv_usec = due % 1000000000LL / 1000;
  return 0;
}

int handle_ioctl(unsigned long request, void* argument) {
  auto* buffer = static_cast<v4l2_buffer*>(argument);
  switch (request) {
    case VIDIOC_QUERYCAP: {
      auto* capability = static_cast<v4l2_capability*>(argument);
      *capability = {};
      std::strcpy(reinterpret_cast<char*>(capability->card), "Bars");
      capability->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
      return 0;
    }
    case VIDIOC_G_INPUT:
      *static_cast<int*>(argument) = 0;
      return 0;
    case VIDIOC_ENUMINPUT: {
      auto* input = static_cast<v4l2_input*>(argument);
      if (input->index > 0) return fail(EINVAL);
      *input = {};
      input->type = V4L2_INPUT_TYPE_CAMERA;
      return 0;
    }
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
      describe(static_cast<v4l2_format*>(argument));
      return 0;
    case VIDIOC_G_PARM: {
      v4l2_captureparm& capture = static_cast<v4l2_streamparm*>(argument)->parm.capture;
      capture.capability = V4L2_CAP_TIMEPERFRAME;
      capture.timeperframe = {1, kRate};
      return 0;
    }
    case VIDIOC_REQBUFS: {
      auto* requested = static_cast<v4l2_requestbuffers*>(argument);
      if (requested->memory != V4L2_MEMORY_MMAP) return fail(EINVAL);
      if (requested->count > kBuffers) requested->count = kBuffers;
      camera.buffers = requested->count;
      return 0;
    }
    case VIDIOC_QUERYBUF:
      if (buffer->index >= camera.buffers) return fail(EINVAL);
      buffer->length = kBytes;
      buffer->m.offset = buffer->index * kBytes;
      return 0;
    case VIDIOC_QBUF:
      if (buffer->index >= camera.buffers || camera.last - camera.first >= camera.buffers) return fail(EINVAL);
      camera.waiting[camera.last++ % kBuffers] = buffer->index;
      return 0;
    case VIDIOC_DQBUF:
      return dequeue(buffer);
    case VIDIOC_STREAMON:
      camera.start = now();
      return 0;
    case VIDIOC_STREAMOFF:
      camera.first = camera.last = 0;
      return 0;
    default:
      return fail(ENOTTY);
  }
}

int open_file(const char* symbol, const char* path, int flags, mode_t mode) {
  if (std::strcmp(path, "/dev/video0") != 0) {
    const auto next = reinterpret_cast<int (*)(const char*, int, ...)>(dlsym(RTLD_NEXT, symbol));
    return next(path, flags, mode);
  }
  camera.file = memfd_create("camera", MFD_CLOEXEC);
  if (camera.file < 0 || ftruncate(camera.file, kBuffers * kBytes) != 0) return -1;
  void* memory = mmap(nullptr, kBuffers * kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, camera.file, 0);
  camera.memory = static_cast<unsigned char*>(memory);
  return memory == MAP_FAILED ? -1 : camera.file;
}

}  // namespace

extern "C" {

#define OPEN(name)                              \
  int name(const char* path, int flags, ...) {  \
    va_list rest;                               \
    va_start(rest, flags);                      \
    const mode_t mode = va_arg(rest, mode_t);   \
    va_end(rest);                               \
    return open_file(#name, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

int ioctl(int file, unsigned long request, ...) {
  va_list rest;
  va_start(rest, request);
  void* argument = va_arg(rest, void*);
  va_end(rest);
  if (file == camera.file && file >= 0) return handle_ioctl(request, argument);
  const auto next = reinterpret_cast<int (*)(int, unsigned long, ...)>(dlsym(RTLD_NEXT, "ioctl"));
  return next(file, request, argument);
}

}  // extern "C"
