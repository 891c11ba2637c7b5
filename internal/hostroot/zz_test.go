package hostroot
import ("testing";"os";"time";"fmt")
func TestZZ(t *testing.T) {
	dir := t.TempDir()+"/host"
	for _, dirty := range []bool{false,true,false} {
	_, err := Mount(dir, Options{}); must(t, err)
	if dirty { must(t, os.WriteFile("/tmp/hr/big", make([]byte, 400<<20), 0o644)) }
	s := time.Now(); must(t, Unmount(dir)); fmt.Println(dirty, time.Since(s))
	}
	os.Remove("/tmp/hr/big")
	must(t, Remove(dir))
}
