"""A window that shows frames as they are made, by tkinter, which comes with most Pythons."""

from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .images import resize


class Window:
    """An open window, to be used as a context manager. Raises UserError without tkinter or without a display."""

    def __init__(self, title: str) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise UserError(f"--live needs tkinter ({error}): apt install python3-tk") from error
        try:
            self._root = tkinter.Tk(className="lwrn-fast")
        except tkinter.TclError as error:
            raise UserError(f"--live needs a display ({error})") from error
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._photo: Any = None
        self._photo_class = ImageTk.PhotoImage
        self._open = True

    def show(self, image: np.ndarray) -> bool:
        """Show uint8 (H, W, 3), shrunk to the screen; return False once the user has closed the window."""
        height, width = image.shape[:2]
        factor = min(1.0, 0.9 * self._root.winfo_screenheight() / height, self._root.winfo_screenwidth() / width)
        image = resize(image, max(1, round(height * factor)), max(1, round(width * factor)))
        self._photo = self._photo_class(Image.fromarray(image), master=self._root)  # tkinter keeps no reference
        self._label.configure(image=self._photo)
        self._root.update()
        return self._open

    def _close(self) -> None:
        self._open = False

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_: object) -> None:
        self._photo = None
        self._root.destroy()
