package demo_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/nettest"
)

// TestDemo plays all demos with the real program, inside a test host, and
// looks that nothing of it is left there.
func TestDemo(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "berth")
	if out, err := exec.Command("go", "build", "-o", bin, "berth/cmd/berth").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, brnf := range []bool{false, true} {
		h := nettest.NewHost(t)
		h.BrNetfilter(t, brnf)
		before := h.Run(t, "sh", "-c", "ip -o link; ip netns list; nft list ruleset; sysctl net.ipv4.ip_forward; ls /run /var/lib/berth")
		out := h.Run(t, bin, "demo", "--commands")
		if !strings.Contains(out, "34 expectations met") || strings.Contains(out, "FAIL") {
			t.Errorf("br_netfilter=%v:\n%s", brnf, out)
		}
		if after := h.Run(t, "sh", "-c", "ip -o link; ip netns list; nft list ruleset; sysctl net.ipv4.ip_forward; ls /run /var/lib/berth"); after != before {
			t.Errorf("the demo left something:\nbefore:\n%s\nafter:\n%s", before, after)
		}
	}
}
