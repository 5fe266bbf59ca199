// Colour jitter, grayscale, blur and solarize on finished U8 views, in place, by the parameters that the
// pipeline drew. The same integer arithmetic as the pipeline's (`kernel/color`, `kernel/blur`): the
// bytes are the same.
#include "common.cuh"

// One view's parameters, as `augment.rs` writes them: WORDS words.
constexpr unsigned WORDS = 80;
struct View {
    // Operations in order, and which of them is contrast (`count` when none is).
    unsigned count, contrast;
    struct {
        unsigned code;
        int a, b;
        float factor;
    } ops[5];
    // 256 for none.
    int threshold;
    // 0 for no blur.
    int radius;
    // Weights of distance 0, 1, .., two to a word.
    unsigned weights[49];
    unsigned unused[WORDS - 73];
};
static_assert(sizeof(View) == WORDS * 4, "as the host has it");

constexpr unsigned BRIGHTNESS = 0, CONTRAST = 1, SATURATION = 2, HUE = 3, GRAYSCALE = 4;

struct Pixel {
    int r, g, b;
};

DEVICE int clamp_byte(int v) { return v < 0 ? 0 : v > 255 ? 255 : v; }

// The high half of a product of 16-bit numbers.
DEVICE int mulhi16(int a, int b) { return (a * b) >> 16; }

// The product of two 15-bit fractions, rounded.
DEVICE int mulhrs(int a, int b) { return (((a * b) >> 14) + 1) >> 1; }

DEVICE int gray_of(const Pixel& p) {
    unsigned sum = (((unsigned)p.r << 8) * 19595u >> 16) + (((unsigned)p.g << 8) * 38470u >> 16) +
                   (((unsigned)p.b << 8) * 7471u >> 16) + 129u;
    return (int)(sum >> 8);
}

DEVICE int contrasted(int v, int value, int shift, int offset) {
    return clamp_byte((mulhi16(v << 7, value) + offset) >> shift);
}

DEVICE int saturated(int v, int gray, int value, int shift) {
    return clamp_byte(((gray << shift) + 1 + mulhi16((v - gray) << 7, value)) >> shift);
}

DEVICE int turned_channel(int x, int unit, int smallest) {
    x = x < 0 ? 0 : x > unit ? unit : x;
    return smallest + ((x + 8) >> 4);
}

// `kernel/color/hue.rs`: the exact turn, drawn towards Pillow's by at most 28 / 16 levels.
DEVICE Pixel turned(const Pixel& p, int sixths, int shift) {
    int largest = max(p.r, max(p.g, p.b)), smallest = min(p.r, min(p.g, p.b));
    int chroma = largest - smallest;
    bool is_red = largest == p.r, is_green = largest == p.g;
    int part = is_red ? p.g - p.b : is_green ? p.b - p.r : p.r - p.g;
    int base = is_red ? 0 : is_green ? 2 : 4, unit = chroma << 4;
    int hue = ((part + base * chroma) << 4) + mulhi16(chroma << 7, sixths);
    hue += hue < 0 ? 6 * unit : 0;
    hue -= hue >= 6 * unit ? 6 * unit : 0;
    // floor(42.5 part / chroma), in whole numbers.
    int divisor = 2 * (chroma > 1 ? chroma : 1), scaled = 85 * part;
    int quotient = scaled / divisor - (scaled % divisor < 0 ? 1 : 0);
    int byte = quotient + 85 * (base >> 1);
    byte += byte < 0 ? 255 : 0;
    byte = (byte + shift) & 255;
    int away = (int)(((unsigned)(byte * chroma) & 0xffffu) * 24672u >> 16) - hue;
    away -= away > 3 * unit ? 6 * unit : 0;
    away += away < -3 * unit ? 6 * unit : 0;
    hue += away < -28 ? -28 : away > 28 ? 28 : away;
    return {
        turned_channel(abs(hue - 3 * unit) - unit, unit, smallest),
        turned_channel(2 * unit - abs(hue - 2 * unit), unit, smallest),
        turned_channel(2 * unit - abs(hue - 4 * unit), unit, smallest)
    };
}

// Operations `from` up to `to`; `mean` is that of the gray image before contrast.
DEVICE Pixel recolored(Pixel p, const View* view, unsigned from, unsigned to, int mean) {
    for (unsigned i = from; i < to; i++) {
        int a = view->ops[i].a, b = view->ops[i].b;
        switch (view->ops[i].code) {
            case BRIGHTNESS:
                p.r = min(mulhi16(p.r << 7, a) >> b, 255);
                p.g = min(mulhi16(p.g << 7, a) >> b, 255);
                p.b = min(mulhi16(p.b << 7, a) >> b, 255);
                break;
            case CONTRAST: {
                float unit = (float)(1 << b);
                float exact = __fmul_rn(__fmul_rn((float)mean, __fadd_rn(1.0f, -view->ops[i].factor)), unit);
                int offset = (int)ceilf(exact);
                p.r = contrasted(p.r, a, b, offset);
                p.g = contrasted(p.g, a, b, offset);
                p.b = contrasted(p.b, a, b, offset);
                break;
            }
            case SATURATION: {
                int gray = gray_of(p);
                p.r = saturated(p.r, gray, a, b);
                p.g = saturated(p.g, gray, a, b);
                p.b = saturated(p.b, gray, a, b);
                break;
            }
            case HUE: p = turned(p, a, b); break;
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
