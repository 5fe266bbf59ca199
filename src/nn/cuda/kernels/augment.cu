// Colour jitter, grayscale, blur and solarize on finished U8 views, in place, by the parameters that the
// pipeline drew. The same arithmetic as the pipeline's (`kernel/color`, `kernel/blur`), each float rounded as
// there: the bytes are the same.
#include "common.cuh"

// One view's parameters, as `augment.rs` writes them: WORDS words.
constexpr unsigned WORDS = 80;
struct View {
    // Operations in order, and which of them is contrast (`count` when none is).
    unsigned count, contrast;
    struct {
        unsigned code;
        // Of a turn of the hue.
        int shift;
        // Of a blend.
        float factor;
    } ops[5];
    // 256 for none.
    int threshold;
    // 0 for no blur.
    int radius;
    // Weights of distance 0, 1, .., two to a word.
    unsigned weights[49];
    unsigned unused[WORDS - 68];
};
static_assert(sizeof(View) == WORDS * 4, "as the host has it");

constexpr unsigned BRIGHTNESS = 0, CONTRAST = 1, SATURATION = 2, HUE = 3, EXACT_HUE = 4, GRAYSCALE = 5;

struct Pixel {
    int r, g, b;
};

DEVICE int clamp_byte(int v) { return v < 0 ? 0 : v > 255 ? 255 : v; }

// The product of two 15-bit fractions, rounded.
DEVICE int mulhrs(int a, int b) { return (((a * b) >> 14) + 1) >> 1; }

DEVICE int gray_of(const Pixel& p) {
    return (int)((19595u * (unsigned)p.r + 38470u * (unsigned)p.g + 7471u * (unsigned)p.b + 32768u) >> 16);
}

// Pillow's `Image.blend`.
DEVICE int blend(int from, int to, float factor) {
    return clamp_byte((int)__fadd_rn((float)from, __fmul_rn(factor, (float)(to - from))));
}

// `kernel/color/hsv.rs`: Pillow's hue, turned by 255ths.
DEVICE int hsv_channel(int k, float value, float reach) {
    float away = __fmul_rn(__fmul_rn(reach, (float)clamp_byte(k)), 1.0f / 65025.0f);
    return (int)__fadd_rn(__fadd_rn(value, -away), 0.5f);
}

DEVICE Pixel turned(const Pixel& p, int shift) {
    int largest = max(p.r, max(p.g, p.b)), smallest = min(p.r, min(p.g, p.b));
    int middle = p.r + p.g + p.b - largest - smallest, chroma = largest - smallest;
    bool is_red = largest == p.r, is_green = largest == p.g;
    int base = is_red ? 0 : is_green ? 2 : 4;
    bool falls = smallest == (is_red ? p.b : is_green ? p.r : p.g);
    float x = __fdiv_rn((float)(largest - middle), (float)max(chroma, 1));
    float sixths = falls ? __fadd_rn((float)(base + 1), -x) : __fadd_rn((float)(base - 1), x);
    float turns = __fdiv_rn(sixths, 6.0f);
    if (turns < 0.0f) turns = __fadd_rn(turns, 1.0f);
    int hue = (int)__fmul_rn(turns, 255.0f), saturation = 255 * chroma / max(largest, 1);
    int at = 6 * ((hue + shift) & 255);
    float value = (float)largest, reach = (float)(largest * saturation);
    return {
        hsv_channel(min(at - 255, 1275 - at), value, reach),
        hsv_channel(max(255 - at, at - 765), value, reach),
        hsv_channel(max(765 - at, at - 1275), value, reach)
    };
}

// `kernel/color/turn.rs`: the hue turned exactly, by sixths with 13 fractional bits.
DEVICE int turned_channel(int x, int unit, int smallest) {
    x = x < 0 ? 0 : x > unit ? unit : x;
    return smallest + ((x + 8) >> 4);
}

DEVICE Pixel turned_exactly(const Pixel& p, int sixths) {
    int largest = max(p.r, max(p.g, p.b)), smallest = min(p.r, min(p.g, p.b));
    int chroma = largest - smallest;
    bool is_red = largest == p.r, is_green = largest == p.g;
    int part = is_red ? p.g - p.b : is_green ? p.b - p.r : p.r - p.g;
    int base = is_red ? 0 : is_green ? 2 : 4, unit = chroma << 4;
    int hue = ((part + base * chroma) << 4) + (((chroma << 7) * sixths) >> 16);
    hue += hue < 0 ? 6 * unit : 0;
    hue -= hue >= 6 * unit ? 6 * unit : 0;
    return {
        turned_channel(abs(hue - 3 * unit) - unit, unit, smallest),
        turned_channel(2 * unit - abs(hue - 2 * unit), unit, smallest),
        turned_channel(2 * unit - abs(hue - 4 * unit), unit, smallest)
    };
}

// Operations `from` up to `to`; `mean` is that of the gray image before contrast.
DEVICE Pixel recolored(Pixel p, const View* view, unsigned from, unsigned to, int mean) {
    for (unsigned i = from; i < to; i++) {
        float factor = view->ops[i].factor;
        int shift = view->ops[i].shift;
        switch (view->ops[i].code) {
            case BRIGHTNESS: p = {blend(0, p.r, factor), blend(0, p.g, factor), blend(0, p.b, factor)}; break;
            case CONTRAST:
                p = {blend(mean, p.r, factor), blend(mean, p.g, factor), blend(mean, p.b, factor)};
                break;
            case SATURATION: {
                int gray = gray_of(p);
                p = {blend(gray, p.r, factor), blend(gray, p.g, factor), blend(gray, p.b, factor)};
                break;
            }
            case HUE: p = turned(p, shift); break;
            case EXACT_HUE: p = turned_exactly(p, shift); break;
            default: p.r = p.g = p.b = gray_of(p);
        }
    }
    return p;
}

DEVICE int solarized(int v, int threshold) { return v < threshold ? v : 255 - v; }

// Blocks of a view; each takes an equal run of pixels.
constexpr unsigned VIEW_BLOCKS = 16;

// sums[view][VIEW_BLOCKS]: of the gray before contrast. Whole numbers: any order gives the same.
extern "C" __global__ void __launch_bounds__(256) augment_gray(
    const unsigned char* views, const View* records, unsigned* sums, unsigned pixels
) {
    const View* view = records + blockIdx.y;
    if (view->contrast == view->count) return;
    __shared__ unsigned lanes[256];
    const unsigned char* of = views + (u64)blockIdx.y * pixels * 3;
    unsigned sum = 0;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < pixels; i += VIEW_BLOCKS * 256) {
        Pixel p = {of[3 * i], of[3 * i + 1], of[3 * i + 2]};
        sum += (unsigned)gray_of(recolored(p, view, 0, view->contrast, 0));
    }
    lanes[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.y * VIEW_BLOCKS + blockIdx.x] = lanes[0];
}

// All colour operations, and solarize where no blur comes between.
extern "C" __global__ void __launch_bounds__(256) augment_color(
    unsigned char* views, const View* records, const unsigned* sums, unsigned pixels
) {
    const View* view = records + blockIdx.y;
    bool solarizes = view->radius == 0 && view->threshold < 256;
    if (view->count == 0 && !solarizes) return;
    int mean = 0;
    if (view->contrast < view->count) {
        u64 sum = 0;
        for (unsigned i = 0; i < VIEW_BLOCKS; i++) sum += sums[blockIdx.y * VIEW_BLOCKS + i];
        mean = (int)((double)sum / (double)pixels + 0.5);
    }
    unsigned char* of = views + (u64)blockIdx.y * pixels * 3;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < pixels; i += VIEW_BLOCKS * 256) {
        Pixel p = {of[3 * i], of[3 * i + 1], of[3 * i + 2]};
        p = recolored(p, view, 0, view->count, mean);
        if (solarizes) {
            int at = view->threshold;
            p = {solarized(p.r, at), solarized(p.g, at), solarized(p.b, at)};
        }
        of[3 * i] = (unsigned char)p.r;
        of[3 * i + 1] = (unsigned char)p.g;
        of[3 * i + 2] = (unsigned char)p.b;
    }
}

DEVICE int weight_of(const View* view, int distance) {
    return (int)(view->weights[distance / 2] >> (distance % 2 * 16) & 0xffffu);
}

// lines[view] = the view blurred along its rows, 6 fractional bits; edge pixels repeat.
extern "C" __global__ void __launch_bounds__(256) augment_blur_rows(
    const unsigned char* views, const View* records, short* lines, unsigned width, unsigned len
) {
    const View* view = records + blockIdx.y;
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (view->radius == 0 || i >= len) return;
    unsigned row = i / (3 * width), x = i % (3 * width) / 3, channel = i % 3;
    const unsigned char* of = views + (u64)blockIdx.y * len + (u64)row * 3 * width + channel;
    int last = (int)width - 1, sum = mulhrs(of[3 * x] << 6, weight_of(view, 0));
    for (int d = 1; d <= view->radius; d++) {
        int left = max((int)x - d, 0), right = min((int)x + d, last);
        sum += mulhrs((of[3 * left] + of[3 * right]) << 6, weight_of(view, d));
    }
    lines[(u64)blockIdx.y * len + i] = (short)sum;
}

// The view, blurred along columns, rounded, and solarized.
extern "C" __global__ void __launch_bounds__(256) augment_blur_columns(
    const short* lines, const View* records, unsigned char* views, unsigned width, unsigned len
) {
    const View* view = records + blockIdx.y;
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (view->radius == 0 || i >= len) return;
    unsigned line = 3 * width;
    int y = (int)(i / line), last = (int)(len / line) - 1;
    const short* of = lines + (u64)blockIdx.y * len + i % line;
    int sum = 32 + mulhrs(of[y * line], weight_of(view, 0));
    for (int d = 1; d <= view->radius; d++) {
        unsigned above = (unsigned)max(y - d, 0), below = (unsigned)min(y + d, last);
        sum += mulhrs(of[above * line] + of[below * line], weight_of(view, d));
    }
    sum = sum < 0 ? 0 : sum > (256 << 6) - 1 ? (256 << 6) - 1 : sum;
    views[(u64)blockIdx.y * len + i] = (unsigned char)solarized(sum >> 6, view->threshold);
}
