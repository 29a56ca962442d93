// A TLS client in Go that connects twice to one address, and prints whether the second connection was resumed.
//
// go-resuming ADDRESS 1.2|1.3
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
)

// resumed makes a connection, reads its answer with the tickets before it, and returns whether it was resumed.
func resumed(config *tls.Config) (bool, error) {
	connection, err := tls.Dial("tcp", os.Args[1], config)
	if err != nil {
		return false, err
	}
	defer connection.Close()
	if _, err := io.WriteString(connection, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); err != nil {
		return false, err
	}
	if _, err := io.Copy(io.Discard, connection); err != nil {
		return false, err
	}
	return connection.ConnectionState().DidResume, nil
}

func main() {
	version := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[os.Args[2]]
	config := &tls.Config{
		ServerName:         "localhost",
		InsecureSkipVerify: true,
		MinVersion:         version,
		MaxVersion:         version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	for _, turn := range []string{"first", "second"} {
		reused, err := resumed(config)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", turn, err)
			os.Exit(1)
		}
		fmt.Printf("%s resumed: %v\n", turn, reused)
	}
}
