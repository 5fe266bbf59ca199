//! What was drawn for one view: plain values, no randomness left.

/// A rectangle of an image, in pixels of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Crop {
    /// The whole of an image.
    pub fn whole(width: usize, height: usize) -> Self {
        Crop { top: 0, left: 0, height, width }
    }

    /// True when the rectangle is not empty and lies in an image of this size.
    pub fn fits(self, width: usize, height: usize) -> bool {
        let end = |start: usize, len: usize| if len == 0 { None } else { start.checked_add(len) };
        end(self.top, self.height).is_some_and(|bottom| bottom <= height)
            && end(self.left, self.width).is_some_and(|right| right <= width)
    }
}

/// The part of the resized crop that becomes the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows of the whole resized crop.
    pub resized_height: usize,
    /// Columns of the whole resized crop.
    pub resized_width: usize,
    /// The view's first row in it.
    pub top: usize,
    /// The view's first column in it.
    pub left: usize,
}

/// One of the four operations of colour jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JitterOp {
    /// Scales all channels.
    Brightness,
    /// Blends with the mean of the gray image.
    Contrast,
    /// Blends with the gray image.
    Saturation,
    /// Turns the hue.
    Hue,
}

/// Drawn colour jitter. A factor of 1 (hue: 0) leaves the image as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter {
    /// The order in which the operations are applied.
    pub order: [JitterOp; 4],
    /// Brightness factor, at least 0.
    pub brightness: f32,
    /// Contrast factor, at least 0.
    pub contrast: f32,
    /// Saturation factor, at least 0.
    pub saturation: f32,
    /// Hue shift as a fraction of a full turn, -0.5..=0.5.
    pub hue: f32,
    /// Turn the hue exactly, not in 8-bit HSV.
    pub exact_hue: bool,
}

/// Everything that was drawn for one view.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ViewParams {
    /// The part of the image that is resized. What lies outside does not
    /// influence the view.
    pub crop: Crop,
    /// The part of the resized crop that is kept; `None` when the crop is
    /// resized to the view's own size.
    pub window: Option<Window>,
    /// Mirror left and right.
    pub flip: bool,
    /// Colour jitter, if it was drawn.
    pub jitter: Option<Jitter>,
    /// Replace the colours by their gray.
    pub grayscale: bool,
    /// Standard deviation of the blur in pixels of the view.
    pub blur_sigma: Option<f32>,
    /// Invert the values at or above this one.
    pub solarize: Option<u8>,
}

impl ViewParams {
    /// Nothing but crop and resize.
    pub fn plain(crop: Crop) -> Self {
        ViewParams {
            crop,
            window: None,
            flip: false,
            jitter: None,
            grayscale: false,
            blur_sigma: None,
            solarize: None,
        }
    }

    /// Crop, resize and flip alone: what a view leaves the loader with when
    /// another finishes it.
    pub fn geometry(&self) -> Self {
        ViewParams { window: self.window, flip: self.flip, ..ViewParams::plain(self.crop) }
    }

    /// The same view, for an image of which only `region` was decoded: the
    /// crop counts from the region's corner.
    ///
    /// # Panics
    /// When the crop begins outside `region`.
    pub fn within(mut self, region: Crop) -> Self {
        assert!(
            self.crop.top >= region.top && self.crop.left >= region.left,
            "the decoded region must hold the crop"
        );
        self.crop.top -= region.top;
        self.crop.left -= region.left;
        self
    }
}
