package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"berth/internal/image"
	"berth/internal/oci"
)

// A progress shows how far the layers of an image are: a line for each that is
// written over on a terminal, else a line for each that is done.
type progress struct {
	w      io.Writer
	wide   int // columns of the terminal; 0: it is none
	layers []image.Event
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if a, ok := w.(*answer); ok {
		w = a.w
	}
	if f, ok := w.(*os.File); ok && oci.IsTerminal(f) {
		_, columns, _ := oci.TerminalSize(f) // best effort: else as narrow as they get
		p.wide = max(int(columns), 40)
	}
	return p
}

// tell takes an event in.
func (p *progress) tell(e image.Event) {
	i := slices.IndexFunc(p.layers, func(l image.Event) bool { return l.Layer == e.Layer })
	if p.wide == 0 {
		if i < 0 {
			p.layers = append(p.layers, e)
			i = len(p.layers) - 1
		}
		done := e.Status == image.Complete || e.Status == image.Exists
		if was := p.layers[i].Status; done && (was != e.Status || e.Status == image.Waiting) {
			fmt.Fprintf(p.w, "%s: %s\n", e.Layer, e.Status)
		}
		p.layers[i] = e
		return
	}
	if i < 0 {
		p.layers = append(p.layers, e)
		fmt.Fprintln(p.w, p.line(e))
		return
	}
	if p.layers[i] == e {
		return
	}
	p.layers[i] = e
	up := len(p.layers) - i
	fmt.Fprintf(p.w, "\x1b[%dA\r\x1b[2K%s\x1b[%dB\r", up, p.line(e), up)
}

// line is that of a layer, no wider than the terminal.
func (p *progress) line(e image.Event) string {
	text := e.Layer + ": " + e.Status
	if e.Status == image.Downloading && e.Total > 0 {
		const long = 20
		done := int(min(max(e.Current, 0), e.Total) * long / e.Total)
		text += fmt.Sprintf(" [%s%s] %s/%s", strings.Repeat("=", done), strings.Repeat(" ", long-done), decimal(e.Current), decimal(e.Total))
	}
	return ellipsis(text, p.wide, false)
}
