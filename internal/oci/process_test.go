package oci

import (
	"os"
	"os/exec"
	"testing"
)

// TestShuttingDown looks from a pid namespace whose first process has the name
// of systemd's at the end, and from one whose first has not.
func TestShuttingDown(t *testing.T) {
	if os.Getenv("SHUTTING_DOWN") != "" {
		if got, want := ShuttingDown(), os.Getenv("SHUTTING_DOWN") == "systemd-shutdow"; got != want {
			t.Errorf("%v, want %v", got, want)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to make a pid namespace")
	}
	for _, name := range []string{"systemd-shutdow", "systemd"} {
		cmd := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "sh", "-ec",
			`printf %s "$SHUTTING_DOWN" >/proc/$$/comm; "$0" -test.run='^TestShuttingDown$'; exit 0`, os.Args[0])
		cmd.Env = append(os.Environ(), "SHUTTING_DOWN="+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("pid 1 is %s: %v\n%s", name, err, out)
		}
	}
}
